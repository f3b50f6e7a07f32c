"""The latents that were read while a model ran, as sparse tensors with a row per text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from groupsae.attach.edits import values_of
from groupsae.errors import HookpointError, ModelError
from groupsae.saes.base import Latents


@dataclass(frozen=True)
class LayerLatents:
    """The active latents of one layer: values (B, T, K) >= 0 and the latents' numbers (B, T, K).

    A value of zero is a latent that did not fire; its number then means nothing. `kept_BT` is false at positions
    that were left out (padding, first positions, some ids): all their values are zero.
    """

    values_BTK: Tensor
    indices_BTK: Tensor
    kept_BT: Tensor
    d_sae: int

    def dense(self) -> Tensor:
        """The same as one tensor (B, T, S)."""
        zeros_BTS = self.values_BTK.new_zeros(*self.values_BTK.shape[:2], self.d_sae)
        return zeros_BTS.scatter_add_(2, self.indices_BTK, self.values_BTK)

    def of(self, latent: int) -> Tensor:
        """The value of one latent at each position, (B, T)."""
        number_1 = torch.tensor([latent], device=self.indices_BTK.device)
        flat = Latents(self.values_BTK.flatten(0, 1), self.indices_BTK.flatten(0, 1))
        return values_of(flat, number_1, self.d_sae).view(self.values_BTK.shape[:2])

    @classmethod
    def of_pass(cls, latents: Latents, kept_BT: Tensor, d_sae: int) -> LayerLatents:
        """Those of a pass over (B, T) positions; without those of positions that are left out."""
        values_NK = torch.where(kept_BT.reshape(-1, 1), latents.values_NK, 0.0)
        form = (*kept_BT.shape, values_NK.shape[1])
        return cls(values_NK.view(form), latents.indices_NK.view(form), kept_BT, d_sae)

    @classmethod
    def joined(cls, parts: Sequence[LayerLatents]) -> LayerLatents:
        """Those of consecutive positions as one."""
        most = max(part.values_BTK.shape[2] for part in parts)
        values, indices = (
            torch.cat([F.pad(tensor, (0, most - tensor.shape[2])) for tensor in tensors], 1)
            for tensors in ([part.values_BTK for part in parts], [part.indices_BTK for part in parts])
        )
        return cls(values, indices, torch.cat([part.kept_BT for part in parts], 1), parts[0].d_sae)


@dataclass
class Recording:
    """What the forward passes over one batch of texts have given: one pass, or those of a `generate`, in order."""

    passes: list[dict[str, LayerLatents]] = field(default_factory=list)
    positions: int = 0

    def start_pass(self, *, continues: bool) -> None:
        """Make ready for a forward pass; one that reads from the start begins anew."""
        if not continues:
            self.passes, self.positions = [], 0
        self.passes.append({})

    def add(self, layer: str, latents: LayerLatents) -> None:
        """Take in what a layer gave in the pass that runs; of a layer that runs twice in it, the last."""
        rows = next(iter(self.passes[0].values()), latents).kept_BT.shape[0]
        if rows != latents.kept_BT.shape[0]:  # other texts with the same cache
            self.passes, self.positions = [{}], 0
        if not self.passes[-1]:
            self.positions += latents.kept_BT.shape[1]
        self.passes[-1][layer] = latents

    def of(self, layer: str) -> LayerLatents:
        """A layer's latents at all positions. Raises ModelError if nothing ran; HookpointError if the layer did not."""
        if not self.passes:
            raise ModelError("No forward pass has been made yet; run the model inside the `with` block first.")
        if any(layer not in each for each in self.passes):
            raise HookpointError(
                f"A forward pass did not reach {layer}: it was stopped by an error, or the model does not use the "
                "module. Run the model again, or attach other layers."
            )
        return LayerLatents.joined([each[layer] for each in self.passes])
