"""The step's sums over active latents as dense products: more arithmetic, in the form that GPUs are fastest at.

Where more than about 1 in 260 (weights too large for the cache) or 1 in 150 of the latents are active, a bfloat16
product of all of them should take less time than gathering the K rows of each token. That is arithmetic for an
H100, not a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from groupsae.saes.kernels.gather import tile_rows
from groupsae.saes.kernels.sparse_grads import SparseGrads
from groupsae.saes.layer_maps import Bias


@final
@dataclass(frozen=True)
class DenseKernel(SparseGrads):
    """The entries in the order of the tokens, scattered tile by tile into rows of S latents."""

    name: ClassVar[str] = "dense"
    indices_NK: Tensor
    values: Tensor
    d_sae: int
    dtype: torch.dtype | None

    @property
    def latents(self) -> Tensor:
        """Those of each token in turn, (M,)."""
        return self.indices_NK.flatten()

    @property
    def tokens(self) -> Tensor:
        """Each token K times, (M,)."""
        count, k = self.indices_NK.shape
        return torch.arange(count, device=self.indices_NK.device).repeat_interleave(k)

    @staticmethod
    def decode(values_NK: Tensor, indices_NK: Tensor, W_SD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The product of all latents (N, S) with W, in tiles."""
        every = DenseKernel.of(indices_NK, values_NK, len(W_SD), dtype)
        decoded_ND, W_cast_SD = W_SD.new_empty(len(indices_NK), W_SD.shape[1]), W_SD.to(dtype or W_SD.dtype)
        for part, weights_RS in every._tiles(every.values):
            decoded_ND[part] = weights_RS @ W_cast_SD
        return decoded_ND

    @classmethod
    def of(cls, indices_NK: Tensor, values_NK: Tensor, d_sae: int, dtype: torch.dtype | None = None) -> DenseKernel:
        """The entries as they come."""
        return cls(indices_NK, values_NK.flatten(), d_sae, dtype)

    def rows(self, x_ND: Tensor, weights_M: Tensor) -> Tensor:
        """The product of all weights (S, N) with x, in tiles."""
        rows_SD, x_cast_ND = x_ND.new_zeros(self.d_sae, x_ND.shape[1]), self._cast(x_ND)
        for part, weights_RS in self._tiles(weights_M):
            rows_SD += weights_RS.T @ x_cast_ND[part]
        return rows_SD

    def rows_and_dots(self, x_ND: Tensor, W_SD: Tensor) -> tuple[Tensor, Tensor]:
        """The dots are picked from the product of x with all of W, in tiles."""
        x_cast_ND, W_DS = self._cast(x_ND), self._cast(W_SD).T
        dots_NK = x_ND.new_empty(self.indices_NK.shape)
        for part in self._parts():
            dots_NK[part] = (x_cast_ND[part] @ W_DS).gather(1, self.indices_NK[part])
        return self.rows(x_ND, self.values), dots_NK.flatten()

    def sums(self, bias: Bias, weights_M: Tensor) -> Tensor:
        """The product of all weights with what tokens took of the bias: of its rows, one."""
        return self.rows(bias.taken_by(len(self.indices_NK)), weights_M).T.view_as(bias.rows)

    def _tiles(self, weights_M: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Which tokens, and their weights (R, S), zero where there is no entry."""
        weights_NK = self._cast(weights_M).view(self.indices_NK.shape)
        for part in self._parts():
            indices_RK = self.indices_NK[part]
            yield part, weights_NK.new_zeros(len(indices_RK), self.d_sae).scatter_(1, indices_RK, weights_NK[part])

    def _parts(self) -> list[slice]:
        rows = tile_rows(self.indices_NK, self.d_sae)
        return [slice(start, start + rows) for start in range(0, len(self.indices_NK), rows)]

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.dtype or x.dtype)
