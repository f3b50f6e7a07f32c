"""A batch taken in parts: the same step up to rounding.

A loss is a sum over tokens divided by what belongs to the whole batch (`Whole`). That is found
first, and the parts' gradients add up to the batch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from groupsae.activations.parts import Parts
from groupsae.saes.base import Latents, Losses, SparseAutoencoder


def parts_of_steps() -> Parts:
    """In how many parts the batches of training steps are taken: one, until memory runs out."""
    return Parts("a training step", "a step on a single token", "Lower sae.expansion, or train fewer groups at once.")


def backward_in_parts(sae: SparseAutoencoder, z_ND: Tensor, dead_S: Tensor, sparsity: float, parts: int) -> Losses:
    """The losses of a batch, whose gradient has been added to the weights, computed in so many parts."""
    whole = sae.whole(z_ND, parts)
    if parts == 1:
        losses = sae.losses(z_ND, dead_S, sparsity, whole)
        losses.total.backward()
        return losses
    each = []
    for z_PD in z_ND.tensor_split(parts):
        losses = sae.losses(z_PD, dead_S, sparsity, whole)
        losses.total.backward()
        each.append(replace(losses, total=losses.total.detach(), latents=losses.latents.fired_only()))
    return Losses(
        total=torch.stack([losses.total for losses in each]).sum(),
        error=torch.stack([losses.error for losses in each]).sum(),
        variance=whole.variance,
        auxk=torch.stack([losses.auxk for losses in each]).sum(),
        latents=joined([losses.latents for losses in each]),
    )


def joined(parts: Sequence[Latents]) -> Latents:
    """The latents of all tokens; tokens of parts with fewer latents each are filled up with zeros."""
    most = max(part.values_NK.shape[1] for part in parts)
    filled = [
        [F.pad(tensor, (0, most - tensor.shape[1])) for tensor in (part.values_NK, part.indices_NK)] for part in parts
    ]
    values_NK, indices_NK = (torch.cat(tensors) for tensors in zip(*filled, strict=True))
    return Latents(values_NK, indices_NK)
