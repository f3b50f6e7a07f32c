"""In which precision the encoder's product is computed, and which of two a machine multiplies faster."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Literal

import torch

Precision = Literal["float32", "bf16"]

MEASURED_SECONDS = 0.05
"""How long the rates of both precisions are measured."""
LEAST_SPEEDUP = 1.3
"""bfloat16 is taken from this many times the rate of float32 on: it rounds more, so it must pay."""
SHAPES = {"cpu": (256, 512, 2048), "cuda": (4096, 2048, 8192)}
"""Tokens, inputs and outputs of the product that is timed: large enough for the device to reach its rate."""


def product_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of the encoder's product for `float32` or `bf16` on this device; None is that of the weights.

    bf16 falls back to float32 where the hardware has no instructions for it, since emulating it is slower.
    """
    return torch.bfloat16 if precision == "bf16" and has_bf16(device) else None


def choose_precision(device: torch.device) -> tuple[Precision, float | None]:
    """The precision that `auto` stands for on a device, and how many times the rate of float32 bfloat16 has.

    It is bf16 where that is at least `LEAST_SPEEDUP`. None where the hardware has no bfloat16, and nothing is measured.
    """
    speedup = bf16_speedup(device)
    return "bf16" if speedup is not None and speedup >= LEAST_SPEEDUP else "float32", speedup


@functools.cache
def bf16_speedup(device: torch.device) -> float | None:
    """How many times as fast as in float32 a device multiplies in bfloat16: measured once in a process, for 50 ms.

    Both have their turn again and again, and the fastest turn of each counts, which other work on the machine disturbs
    least. None where the hardware has no bfloat16.
    """
    if not has_bf16(device):
        return None
    tokens, inputs, outputs = SHAPES.get(device.type, SHAPES["cpu"])
    random = torch.Generator(device).manual_seed(0)
    x_ND = torch.randn(tokens, inputs, generator=random, device=device)
    w_DS = torch.randn(inputs, outputs, generator=random, device=device)
    pairs = {dtype: (x_ND.to(dtype), w_DS.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    works = {dtype: functools.partial(torch.matmul, *pair) for dtype, pair in pairs.items()}
    fastest = _fastest_turns(works, device)
    return fastest[torch.float32] / fastest[torch.bfloat16]


def _fastest_turns(works: dict[torch.dtype, Callable[[], object]], device: torch.device) -> dict[torch.dtype, float]:
    """Seconds of the fastest turn of each, after one that does not count and at least two that do."""
    fastest = dict.fromkeys(works, float("inf"))
    for work in works.values():
        work()
    began, turns = _now(device), 0
    while turns < 2 or _now(device) - began < MEASURED_SECONDS:
        for dtype, work in works.items():
            started = _now(device)
            work()
            fastest[dtype] = min(fastest[dtype], _now(device) - started)
        turns += 1
    return fastest


def _now(device: torch.device) -> float:
    """Seconds on the clock once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
