"""A batch taken in parts when the device's memory does not hold the whole: the same step up to rounding.

A loss is a sum over tokens divided by what belongs to the whole batch (the variance V). So V is
computed first, and the parts' gradients add up to the batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from groupsae.errors import FitError
from groupsae.saes.base import Latents, Losses, SparseAutoencoder, Whole
from groupsae.saes.bias import Bias

Result = TypeVar("Result")


class MicroBatches:
    """How many parts a batch is taken in: one, until memory runs out, then twice as many from then on."""

    def __init__(self) -> None:
        self.parts = 1

    def run(self, work: Callable[[int], Result], undo: Callable[[], None], most: int) -> Result:
        """What `work(parts)` gives. Out of memory, it is undone and repeated with twice the parts.

        Raises FitError if even `most` parts are too few.
        """
        while True:
            try:
                return work(min(self.parts, most))
            except torch.OutOfMemoryError as error:
                undo()
                if self.parts >= most:
                    raise FitError(
                        f"The device's memory does not hold a step on a single token: {error}. "
                        "Lower sae.expansion, or train fewer groups at once."
                    ) from error
            self.parts *= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def backward_in_parts(
    sae: SparseAutoencoder, z_ND: Tensor, dead_S: Tensor, sparsity: float, parts: int, own: Bias | None = None
) -> Losses:
    """The losses of a batch, whose gradient has been added to the weights, computed in so many parts."""
    whole, size, each = Whole.of(z_ND), -(-len(z_ND) // parts), []
    for z_PD, own_P in zip(z_ND.split(size), own.split(size) if own else repeat(None), strict=False):
        each.append(sae.losses(z_PD, dead_S, sparsity, whole, own_P))
        each[-1].total.backward()
    if len(each) == 1:
        return each[0]
    return Losses(
        total=torch.stack([losses.total.detach() for losses in each]).sum(),
        error=torch.stack([losses.error for losses in each]).sum(),
        variance=whole.variance,
        auxk=torch.stack([losses.auxk for losses in each]).sum(),
        latents=joined([losses.latents for losses in each]),
    )


def joined(parts: Sequence[Latents]) -> Latents:
    """The latents of all tokens; tokens of parts with fewer latents each are filled up with zeros."""
    most = max(part.values_NK.shape[1] for part in parts)
    filled = [
        [F.pad(tensor.detach(), (0, most - tensor.shape[1])) for tensor in (part.values_NK, part.indices_NK)]
        for part in parts
    ]
    values_NK, indices_NK = (torch.cat(tensors) for tensors in zip(*filled, strict=True))
    return Latents(values_NK, indices_NK)
