"""The active latents of a batch, and the four things that a step does with them: what its kernels have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from groupsae.saes.layer_maps import Bias


class SparseGrads(ABC):
    """The active latents (N, K) of a batch as M = N K entries: `latents`, `tokens` and `values` (M,) belong together.

    In which order entries stand is the kernel's own affair; whatever has an entry per latent and token, such as
    `dots`, stands in the same. A token has each latent at most once. Paths differ in how they sum, so results
    differ in rounding.
    """

    name: ClassVar[str]
    latents: Tensor
    tokens: Tensor
    values: Tensor

    @staticmethod
    @abstractmethod
    def decode(values_NK: Tensor, indices_NK: Tensor, W_SD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """sum_k values[n, k] W[indices[n, k]], (N, D), without gradient.

        `dtype` is that of the operands where a kernel takes dense products, W's own by default.
        """

    @classmethod
    @abstractmethod
    def of(cls, indices_NK: Tensor, values_NK: Tensor, d_sae: int, dtype: torch.dtype | None = None) -> SparseGrads:
        """The entries; `dtype` as for `decode`."""

    @abstractmethod
    def rows(self, x_ND: Tensor, weights_M: Tensor) -> Tensor:
        """For each latent the sum over its entries of weight times x[token]: (S, D)."""

    @abstractmethod
    def rows_and_dots(self, x_ND: Tensor, W_SD: Tensor) -> tuple[Tensor, Tensor]:
        """`rows` weighted by the values, and for each entry <W[latent], x[token]>, (M,)."""

    @abstractmethod
    def sums(self, bias: Bias, weights_M: Tensor) -> Tensor:
        """For each number of a bias the sum of the weights of the entries it was added to: (S,), or (layers, S)."""
