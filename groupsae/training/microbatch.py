"""A batch taken in parts: the same step up to rounding.

A loss is a sum over tokens divided by what belongs to the whole batch (`BatchStats`). That is found
first, and the parts' gradients add up to the batch's.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from itertools import repeat

from torch import Tensor

from groupsae.oom import SplitOnOOM
from groupsae.saes.base import FiringStats, SparseAutoencoder, StepLosses
from groupsae.saes.layer_maps import Bias


def step_splits() -> SplitOnOOM:
    """The number of parts that batches of training steps are split into: one, until memory runs out."""
    return SplitOnOOM(
        "a training step", "a step on a single token", "Lower sae.expansion, or train fewer groups at once."
    )


@dataclass(frozen=True)
class StepResult:
    """What a step cost, as in `StepLosses` but without gradient, and what was active."""

    total: Tensor
    error: Tensor
    variance: Tensor
    auxk: Tensor
    activity: FiringStats

    @classmethod
    def of(cls, losses: StepLosses, d_sae: int) -> StepResult:
        """That of a batch, or of a part of it."""
        activity = losses.latents.activity(d_sae)
        return cls(losses.total.detach(), losses.error, losses.variance, losses.auxk, activity)

    def __add__(self, other: StepResult) -> StepResult:
        """That of two parts of a batch together; the variance is the whole batch's already."""
        return StepResult(
            self.total + other.total,
            self.error + other.error,
            self.variance,
            self.auxk + other.auxk,
            self.activity + other.activity,
        )


def backward_in_splits(
    sae: SparseAutoencoder, z_ND: Tensor, dead_S: Tensor, sparsity: float, splits: int, layer_bias: Bias | None = None
) -> StepResult:
    """The result of a batch, whose gradient is added to the weights, computed in so many parts or fewer."""
    size = -(-len(z_ND) // splits)
    whole = sae.whole(z_ND, size, layer_bias)

    def backward(z_PD: Tensor, bias_P: Bias | None) -> StepResult:
        losses = sae.losses(z_PD, dead_S, sparsity, whole, bias_P)
        losses.total.backward()
        return StepResult.of(losses, sae.d_sae)

    return reduce(operator.add, map(backward, z_ND.split(size), layer_bias.split(size) if layer_bias else repeat(None)))
