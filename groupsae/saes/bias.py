"""What is added to the encoder's products: one bias for all tokens, or a row for each layer of a group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional as F


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
