"""A batch taken in parts: the same step up to rounding.

A loss is a sum over tokens divided by what belongs to the whole batch (`Whole`). That is found
first, and the parts' gradients add up to the batch's.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from itertools import repeat

from torch import Tensor

from groupsae.activations.parts import Parts
from groupsae.saes.base import Activity, Losses, SparseAutoencoder
from groupsae.saes.bias import Bias


def parts_of_steps() -> Parts:
    """In how many parts the batches of training steps are taken: one, until memory runs out."""
    return Parts("a training step", "a step on a single token", "Lower sae.expansion, or train fewer groups at once.")


@dataclass(frozen=True)
class Outcome:
    """What a step cost, as in `Losses` but without gradient, and what was active."""

    total: Tensor
    error: Tensor
    variance: Tensor
    auxk: Tensor
    activity: Activity

    @classmethod
    def of(cls, losses: Losses, d_sae: int) -> Outcome:
        """That of a batch, or of a part of it."""
        activity = losses.latents.activity(d_sae)
        return cls(losses.total.detach(), losses.error, losses.variance, losses.auxk, activity)

    def __add__(self, other: Outcome) -> Outcome:
        """That of two parts of a batch together; the variance is the whole batch's already."""
        return Outcome(
            self.total + other.total,
            self.error + other.error,
            self.variance,
            self.auxk + other.auxk,
            self.activity + other.activity,
        )


def backward_in_parts(
    sae: SparseAutoencoder, z_ND: Tensor, dead_S: Tensor, sparsity: float, parts: int, own: Bias | None = None
) -> Outcome:
    """The outcome of a batch, whose gradient has been added to the weights, computed in so many parts or fewer."""
    size = -(-len(z_ND) // parts)
    whole = sae.whole(z_ND, size, own)

    def backward(z_PD: Tensor, own_P: Bias | None) -> Outcome:
        losses = sae.losses(z_PD, dead_S, sparsity, whole, own_P)
        losses.total.backward()
        return Outcome.of(losses, sae.d_sae)

    return reduce(operator.add, map(backward, z_ND.split(size), own.split(size) if own else repeat(None)))
