"""Changes to latents of one layer, and the difference that they make to its activations.

Each edit maps a latent's value f to another one:

    steer    f + strength        ablate    0        clamp    value

Edits of the same latent are made one after the other, so that together they are f' = factor f + offset. A layer's
activations x then change by the difference alone:

    x' = x + sum over edited latents of (f' - f) d        d, the latent's decoder row in the units of x
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from groupsae.saes.base import Latents
from groupsae.saes.suite import BoundSAE


@dataclass(frozen=True)
class Edit:
    """f' = factor f + offset."""

    factor: float
    offset: float

    def then(self, later: Edit) -> Edit:
        """This edit and a later one, as one."""
        return Edit(later.factor * self.factor, later.factor * self.offset + later.offset)


NO_EDIT = Edit(1.0, 0.0)


@dataclass(frozen=True)
class LayerEdits:
    """The edits of a layer, by the latents' numbers."""

    by_latent: dict[int, Edit]

    def then(self, latents: Iterable[int], edit: Edit) -> LayerEdits:
        """These edits, and another one of some latents."""
        added = {latent: self.by_latent.get(latent, NO_EDIT).then(edit) for latent in latents}
        return replace(self, by_latent=self.by_latent | added)

    @property
    def need_values(self) -> bool:
        """Whether the difference depends on what the latents' values are."""
        return any(edit.factor != 1 for edit in self.by_latent.values())

    def difference(self, bound: BoundSAE, latents: Latents | None) -> Tensor:
        """What is added to activations (N, D); (1, D), the same for all tokens, where no latents are given."""
        W_SD = bound.sae.W_dec
        numbers_M = torch.tensor(list(self.by_latent), device=W_SD.device)
        offset_M = W_SD.new_tensor([edit.offset for edit in self.by_latent.values()])
        change_NM = offset_M[None]
        if latents is not None:
            factor_M = W_SD.new_tensor([edit.factor for edit in self.by_latent.values()])
            change_NM = (factor_M - 1) * values_of(latents, numbers_M, len(W_SD)).to(W_SD.dtype) + offset_M
        return change_NM @ directions(bound, numbers_M)


def directions(bound: BoundSAE, numbers_M: Tensor) -> Tensor:
    """What one unit of each of these latents adds to raw activations, (M, D)."""
    rows_MD = bound.sae.W_dec[numbers_M]
    return (rows_MD if bound.maps is None else bound.maps.from_group(rows_MD, bound.layer)) / bound.scale


def values_of(latents: Latents, numbers_M: Tensor, d_sae: int) -> Tensor:
    """The values (N, M) of some latents; zero where they are not active."""
    place_S = torch.full((d_sae,), len(numbers_M), device=numbers_M.device)
    place_S[numbers_M] = torch.arange(len(numbers_M), device=numbers_M.device)
    values_NM = latents.values_NK.new_zeros(len(latents.values_NK), len(numbers_M) + 1)
    return values_NM.scatter_add_(1, place_S[latents.indices_NK], latents.values_NK)[:, :-1]
