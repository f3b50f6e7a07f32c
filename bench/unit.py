"""The unit in which steps are measured: one encoder product of the step's shape, in float32 where libraries meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from groupsae.training.kernel_choice import now


class Shape(NamedTuple):
    """The sizes of a step: width D, latents S, active latents K, tokens B."""

    d_model: int
    d_sae: int
    k: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The sizes written as `768x12288x32x4096`."""
        return cls(*map(int, text.split("x", maxsplit=3)))


def encoder_product(shape: Shape, x_ND: Tensor) -> Callable[[], Tensor]:
    """x @ W_enc.T, in x's precision, into memory that is there already, run once before it is given."""
    weights_SD, out_NS = x_ND.new_empty(shape.d_sae, shape.d_model).normal_(), x_ND.new_empty(len(x_ND), shape.d_sae)
    torch.mm(x_ND, weights_SD.T, out=out_NS)
    return lambda: torch.mm(x_ND, weights_SD.T, out=out_NS)


def milliseconds(work: Callable[[], object], device: torch.device = torch.device("cpu")) -> float:  # noqa: B008
    """How long one call takes, until the device has done all of it."""
    began = now(device)
    work()
    return 1e3 * (now(device) - began)
