"""The unit in which steps are measured: one float32 encoder product of the step's shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """The sizes of a step: width D, latents S, active latents K, tokens B."""

    d_model: int
    d_sae: int
    k: int
    batch: int


def encoder_product(shape: Shape, x_ND: Tensor) -> Callable[[], Tensor]:
    """x @ W_enc.T into memory that is there already, run once before it is given."""
    weights_SD, out_NS = torch.randn(shape.d_sae, shape.d_model), torch.empty(len(x_ND), shape.d_sae)
    torch.mm(x_ND, weights_SD.T, out=out_NS)
    return lambda: torch.mm(x_ND, weights_SD.T, out=out_NS)


def milliseconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)
