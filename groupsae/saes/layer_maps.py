"""What a layer has of its own inside a group, besides its center and scale.

The SAE of a group sees z' and gives z'_hat. Each layer l of the group maps its activations z to z' and back:

    z' = R_l z        z_hat = R_l^T z'_hat        pre-activations = W_enc (z' - b_dec) + b_enc + beta_l

- rotation: R_l (D, D) is orthogonal and turns layer l onto the group's middle layer (Procrustes). It is fitted before
  training (`groupsae.training.fit`).
- bias: beta_l (S,) is learned with the SAE by the same optimizer, and is zero at first.
Both fold exactly into the weights of a layer's own SAE. A group of one layer has no bias, and its rotation is I.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupsae.config import PerLayer

if TYPE_CHECKING:  # every SAE's losses take a Bias, so `base` imports this module
    from groupsae.saes.base import SparseAutoencoder


@dataclass(frozen=True)
class Bias:
    """A bias (S,) of all tokens, or rows (M, S) of which each of N tokens takes that of its layer, `layers_N`.

    Rows are added as a product with the tokens' layers as one-hot rows: that costs no more than adding one bias, while
    gathering a row per token would cost as much again as the encoder's product of a narrow model.
    """

    rows: Tensor
    layers_N: Tensor | None = None

    def plus(self, shift_S: Tensor) -> Bias:
        """The same with something added for all tokens alike."""
        return replace(self, rows=self.rows + shift_S)

    def at(self, latents: Tensor) -> Bias:
        """That of some latents only."""
        return replace(self, rows=self.rows[..., latents])

    def to(self, dtype: torch.dtype) -> Bias:
        """The same in another precision."""
        return replace(self, rows=self.rows.to(dtype))

    def split(self, tokens: int) -> Iterator[Bias]:
        """Those of so many tokens at a time; without end where all tokens have the same."""
        if self.layers_N is None:
            return repeat(self)
        return (replace(self, layers_N=layers_R) for layers_R in self.layers_N.split(tokens))

    def add_to(self, products_RS: Tensor) -> Tensor:
        """The products of these tokens plus their bias, in place."""
        if self.layers_N is None:
            return products_RS.add_(self.rows)
        return products_RS.addmm_(self.taken_by(len(products_RS)), self.rows)

    def linear(self, z_ND: Tensor, W_SD: Tensor) -> Tensor:
        """W z + bias, (N, S), with gradients for all three."""
        if self.layers_N is None:
            return F.linear(z_ND, W_SD, self.rows)
        return torch.addmm(z_ND @ W_SD.T, self.taken_by(len(z_ND)), self.rows)

    def sums(self, tokens_M: Tensor, latents_M: Tensor, weights_M: Tensor) -> Tensor:
        """For each of its numbers the sum of the weights of the (token, latent) pairs that it was added to."""
        places_M = latents_M.int()
        if self.layers_N is not None:
            places_M = places_M + self.layers_N[tokens_M] * self.rows.shape[-1]
        return weights_M.new_zeros(self.rows.numel()).index_add_(0, places_M, weights_M).view_as(self.rows)

    def taken_by(self, tokens: int) -> Tensor:
        """How often each of so many tokens takes each row: (N, M) of zeros and ones, or (N, 1) of ones."""
        if self.layers_N is None:
            return self.rows.new_ones(tokens, 1)
        return F.one_hot(self.layers_N, len(self.rows)).to(self.rows.dtype)


class LayerMaps(nn.Module):
    """The maps of the M layers of one group; a tensor that `per_layer` does not ask for is empty.

    Buffer: rotation (M, D, D). Parameter: bias (M, S), None where layers have none.
    """

    rotation_MDD: Tensor
    bias_MS: Tensor | None

    def __init__(self, layers: int, d_model: int, per_layer: PerLayer, d_sae: int = 0) -> None:
        super().__init__()
        self.per_layer, self.layers = per_layer, layers
        self.register_buffer("rotation_MDD", torch.eye(d_model).repeat(layers * per_layer.rotation, 1, 1))
        biased = per_layer.bias and layers > 1
        self.register_parameter("bias_MS", nn.Parameter(torch.zeros(layers, d_sae)) if biased else None)

    def for_width(self, d_sae: int) -> LayerMaps:
        """The same rotations with biases of zero for SAEs of another width; these maps, if theirs are as wide."""
        if self.bias_MS is None or self.bias_MS.shape[1] == d_sae:
            return self
        d_model = self.rotation_MDD.shape[-1]
        maps = LayerMaps(self.layers, d_model, self.per_layer, d_sae).to(self.bias_MS.device)
        maps.rotation_MDD.copy_(self.rotation_MDD)
        return maps

    def to_group(self, z_ND: Tensor, layers_N: Tensor) -> Tensor:
        """z' of tokens z of these layers."""
        if not self.per_layer.rotation:
            return z_ND
        if self.layers == 1:
            return z_ND @ self.rotation_MDD[0].T
        mapped_ND = torch.empty_like(z_ND)
        for layer in range(self.layers):
            of_layer = (layers_N == layer).nonzero().squeeze(1)
            mapped_ND[of_layer] = z_ND[of_layer] @ self.rotation_MDD[layer].T
        return mapped_ND

    def from_group(self, z_hat_ND: Tensor, layer: int) -> Tensor:
        """z_hat from z'_hat, for tokens of one layer."""
        return z_hat_ND @ self.rotation_MDD[layer] if self.per_layer.rotation else z_hat_ND

    def bias(self, layers_N: Tensor) -> Bias | None:
        """The biases of tokens of these layers; None where layers have none."""
        return None if self.bias_MS is None else Bias(self.bias_MS, layers_N)

    def with_bias(self, sae: SparseAutoencoder, layer: int) -> SparseAutoencoder:
        """A copy of the SAE that includes the layer's bias; both weight matrices are shared with the original."""
        if self.bias_MS is None:
            return sae
        biased = copy.deepcopy(sae, {id(weight): weight for weight in (sae.W_enc, sae.W_dec)})
        biased.shift_products(self.bias_MS[layer].detach())
        return biased

    @torch.no_grad()
    def fold_rotation(self, sae: SparseAutoencoder, layer: int) -> None:
        """Turn an SAE of z' into an SAE of z that does the same at this layer. Biases are left aside."""
        if self.per_layer.rotation:
            R_DD = self.rotation_MDD[layer]
            for weight in (sae.W_enc, sae.W_dec, sae.b_dec):
                weight.copy_(weight @ R_DD)
