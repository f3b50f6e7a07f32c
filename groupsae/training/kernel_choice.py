"""Which kernel the steps of a training use: on a GPU the fastest of those that give the same results.

A short measurement decides: which kernel is fastest depends on the sizes N, D, S and K, on the precision, and on the
card. Kernels round differently, so a training that is resumed keeps the kernel it had. The measurement has a batch
and a generator of its own and keeps no gradient, so nothing that is trained and no random state is touched.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from groupsae.oom import is_out_of_memory
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.kernels.by_name import REFERENCE, kernel_named, kernels_on
from groupsae.saes.kernels.gather import squared_error
from groupsae.saes.layer_maps import Bias
from groupsae.saes.topk import TopKSAE
from groupsae.training.precision import Precision, choose_precision

Work = Callable[[], Sequence[Tensor]]
"""Computes the gradients of the four weights."""
REPEATS = 5
TOLERANCE = 0.02
"""How far a kernel's gradients may be from the definition's, as a share of their norm: bfloat16 gave at most 0.005."""


@dataclass(frozen=True)
class KernelChoice:
    """The kernel that is taken; what each that was tried takes, in seconds per batch; and why others were left out.

    `precision` is that of the encoder's product, and `bf16_speedup` how many times as fast as float32 bfloat16 is,
    where that decided it.
    """

    name: str = REFERENCE.name
    seconds: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    precision: Precision = "float32"
    bf16_speedup: float | None = None

    @property
    def measured(self) -> bool:
        """Whether anything was measured to come to it."""
        return bool(self.seconds or self.faults or self.bf16_speedup)

    def __str__(self) -> str:
        tried = [f"{name} {1e3 * seconds:.2f} ms" for name, seconds in self.seconds.items()]
        left_out = [f"{name} left out: {why}" for name, why in self.faults.items()]
        speed = f"{self.precision}, as products in bf16 are {self.bf16_speedup or 0:.2f} times as fast as in float32"
        return "; ".join([self.name, *tried, *left_out, *([speed] if self.bf16_speedup else [])])


def choose_kernel(
    saes: Sequence[SparseAutoencoder],
    tokens: int,
    before: KernelChoice | None = None,
    precision: Literal["auto", "float32", "bf16"] = "float32",
) -> KernelChoice:
    """The kernel and precision of a training whose SAEs are all alike in size, which they take from now on.

    The kernel is the one of `before`, where this machine has it, and else chosen for batches of so many tokens. The
    precision is that of `before`, wherever there is one; `auto` is else decided by what this machine is faster at.
    """
    precision_facts = _precision(saes[0], before, precision)
    for sae in saes:
        sae.product_dtype = torch.bfloat16 if precision_facts["precision"] == "bf16" else None
    choice = before if before and _has(before.name, saes[0].W_dec.device) else choice_for(saes[0], tokens)
    choice = replace(choice, **precision_facts)
    for sae in saes:
        if isinstance(sae, TopKSAE):
            sae.kernel = kernel_named(choice.name)
    return choice


def _precision(sae: SparseAutoencoder, before: KernelChoice | None, precision: str) -> dict[str, Any]:
    if before:
        return {"precision": before.precision, "bf16_speedup": before.bf16_speedup}
    if precision != "auto":
        return {"precision": "bf16" if sae.product_dtype == torch.bfloat16 else "float32"}
    chosen, speedup = choose_precision(sae.W_dec.device)
    return {"precision": chosen, "bf16_speedup": speedup}


def choice_for(sae: SparseAutoencoder, tokens: int) -> KernelChoice:
    """The choice for batches of so many tokens, on the device that the SAE is on.

    Architectures other than TopK know only one kernel, and so do a nested TopK and CPUs: nothing is measured for them.
    """
    device = sae.W_dec.device
    if not isinstance(sae, TopKSAE) or sae.nested or len(kernels_on(device)) == 1:
        return KernelChoice()
    try:
        return fastest(sae, tokens, kernels_on(device))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Training itself takes a batch in parts then.
        return KernelChoice(faults={REFERENCE.name: _first_line(error)})
    finally:
        torch.cuda.empty_cache()


def fastest(sae: TopKSAE, tokens: int, names: Sequence[str], repeats: int = REPEATS) -> KernelChoice:
    """The fastest of these kernels, of which the first is what the others are compared with.

    A kernel that fails, for want of memory or of a compiler, or gives other gradients, is left out. Where all do,
    the choice is the definition.
    """
    batch = _batch(sae, tokens)
    works, faults = _sound(sae, names, batch)
    seconds = _take_turns(works, repeats, sae.W_dec.device)
    return KernelChoice(min(seconds, key=seconds.__getitem__, default=REFERENCE.name), seconds, faults)


def _has(name: str, device: torch.device) -> bool:
    """Whether a kernel can be taken on a device."""
    try:
        return name in kernels_on(device) and bool(kernel_named(name))
    except ImportError:
        return False


def _sound(
    sae: TopKSAE, names: Sequence[str], batch: tuple[Tensor, Tensor, Tensor]
) -> tuple[dict[str, Work], dict[str, str]]:
    """The work of each kernel whose gradients are those of the first, and what is wrong with the others."""
    works, faults, expected = {}, {}, None
    for name in names:
        try:
            work = _work(sae, name, batch)
            found = work()
            distance = _distance(found, expected) if expected else 0.0
        except Exception as error:  # whatever a kernel's compiler raises must not stop a training that can do without
            faults[name] = _first_line(error)
            continue
        if distance > TOLERANCE:
            faults[name] = f"its gradients are {distance:.1%} from those of {next(iter(works))}"
            continue
        expected, works[name] = expected or found, work
    return works, faults


def _batch(sae: TopKSAE, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of noise, and its active latents."""
    device = sae.W_dec.device
    random = torch.Generator(device).manual_seed(0)
    z_ND = torch.randn(tokens, sae.d_model, generator=random, device=device) / sae.d_model**0.5
    with torch.no_grad():
        latents = sae.encode_sparse(z_ND)
    return z_ND, latents.values_NK, latents.indices_NK


def _work(sae: TopKSAE, name: str, batch: tuple[Tensor, Tensor, Tensor]) -> Work:
    """What computes, by a kernel, the gradients of the error of a batch."""
    kernel = kernel_named(name)
    weights = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)

    def work() -> Sequence[Tensor]:
        error, _ = squared_error(*batch, sae.W_enc, Bias(sae.b_enc), sae.W_dec, sae.b_dec, kernel, sae.product_dtype)
        return torch.autograd.grad(error, weights)

    return work


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest, over the weights, of the norm of the difference as a share of the norm; infinite for NaN."""
    shares = [
        torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other).clamp_min(1e-30)
        for one, other in zip(found, expected, strict=True)
    ]
    return torch.stack(shares).nan_to_num(torch.inf).max().item()


def _take_turns(works: dict[str, Work], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, after a turn that does not count; all have their turn before any has its next."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = now(device)
            work()
            spent = now(device) - began
            if turn:
                seconds[name].append(spent)
    return {name: statistics.median(spent) for name, spent in seconds.items()}


def now(device: torch.device) -> float:
    """Seconds on the clock once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
