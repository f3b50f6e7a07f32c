"""Our step by each of its kernels on one device, beside its floor: the encoder's product in bfloat16.

    python bench/step.py --device cuda

Every step needs that product, and of arithmetic little else where sums are sparse: 2 D S of 2 D (S + 4 K) FLOPs per
token. Its time is measured on the card, right after each step. Steps are whole ones, optimizer included, and kernels
take turns. On a device without bfloat16 the floor is the product in float32.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import results
import torch
from steps import group_in_training
from torch import Tensor
from unit import Shape, encoder_product, milliseconds

from groupsae.saes.kernels.by_name import kernel_named, kernels_on
from groupsae.saes.kernels.dense import DenseKernel
from groupsae.saes.kernels.gather import GatherKernel
from groupsae.training.kernel_choice import choice_for
from groupsae.training.precision import has_bf16

SHAPES = tuple(Shape(width, 16 * width, k, 4096) for width in (768, 2048) for k in (32, 64, 128))
COLUMNS = ("D", "S", "K", "batch", "product in", "kernel", "ms", "floors: median", "quartiles", "floor, ms", "chosen")


def measure_kernels(shape: Shape, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """The table's rows for one shape, for each precision that the device has: steps in milliseconds and in floors."""
    torch.manual_seed(0)
    x_ND = torch.randn(shape.batch, shape.d_model).to(device)
    rows = []
    for precision in ("bf16", "float32") if has_bf16(device) else ("float32",):
        steps, chosen, faults = _steps(shape, device, precision, x_ND)
        for name, fault in faults.items():
            results.print_row((*shape, precision, f"{name}: left out, {fault}", *["-"] * 5))
        for name, (steps_ms, floors_ms) in _take_turns(shape, x_ND, steps, repeats).items():
            units = [step / floor for step, floor in zip(steps_ms, floors_ms, strict=True)]
            low, middle, high = statistics.quantiles(units, n=4)
            facts = {"step_ms": statistics.median(steps_ms), "floors": middle, "quartiles": [low, high]}
            facts |= {"precision": precision, "kernel": name, "chosen": name == chosen}
            facts["floor_ms"] = statistics.median(floors_ms)
            rows.append({**shape._asdict(), **facts})
            spread, mark = f"{low:.2f} to {high:.2f}", "yes" if name == chosen else ""
            numbers = (f"{facts['step_ms']:.3f}", f"**{middle:.2f}**", spread, f"{facts['floor_ms']:.3f}", mark)
            results.print_row((*shape, precision, name, *numbers))
    return rows


def _steps(
    shape: Shape, device: torch.device, precision: str, x_ND: Tensor
) -> tuple[dict[str, Callable[[], None]], str, dict[str, str]]:
    """A step by each kernel that runs, which of them training would choose, and what is wrong with the others."""
    steps, faults = {}, {}
    for name in dict.fromkeys((*kernels_on(device), GatherKernel.name, DenseKernel.name)):
        group = group_in_training(shape, device, precision=precision)
        layers_N = torch.zeros(shape.batch, dtype=torch.long, device=device)
        try:
            group.sae.kernel = kernel_named(name)
            for _ in range(2):
                group.step(x_ND, layers_N, 0.0)
        except Exception as error:  # a table with a gap is better than none
            faults[name] = str(error).partition("\n")[0]
        else:
            steps[name] = lambda group=group, layers_N=layers_N: group.step(x_ND, layers_N, 0.0)
    return steps, choice_for(group_in_training(shape, device, precision=precision).sae, shape.batch).name, faults


def _take_turns(
    shape: Shape, x_ND: Tensor, steps: dict[str, Callable[[], None]], repeats: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of each kernel's steps, and of the floor right after each."""
    floor = encoder_product(shape, x_ND.bfloat16() if has_bf16(x_ND.device) else x_ND)
    found = {name: ([], []) for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            found[name][0].append(milliseconds(step, x_ND.device))
            found[name][1].append(milliseconds(floor, x_ND.device))
    return found
