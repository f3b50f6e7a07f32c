"""Triton kernels for the sparse step on a GPU: sums of a few rows per token, and of a few tokens per latent.

Sums are taken in float32, whatever the inputs, and in one fixed order: nothing is added atomically, so that equal
inputs give equal bits. Importing this module needs Triton; on a machine without a GPU it runs in Triton's
interpreter if TRITON_INTERPRET=1 is set before Triton is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
import triton
import triton.language as tl
from torch import Tensor

from groupsae.saes.kernels.gather import GatherKernel
from groupsae.saes.kernels.sparse_grads import SparseGrads
from groupsae.saes.layer_maps import Bias

ROW_NUMBERS_PER_WARP = 512
"""Numbers of a row for which a program has another warp, up to `MOST_WARPS`."""
TILE_NUMBERS_PER_WARP = 1024
"""Numbers of a gathered tile, BLOCK_M rows of BLOCK_D, that a warp holds: 32 in each of its threads' registers."""
MOST_WARPS, MOST_ROWS = 8, 16
SHORTEST = 64
"""Entries of the list that are never divided among programs."""


@triton.jit
def _decode(values, indices, W, out, K, D, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """out[n] = sum_k values[n, k] W[indices[n, k]]; one program per token."""
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, K, BLOCK_M):
        k = start + tl.arange(0, BLOCK_M)
        row = tl.load(indices + n * K + k, mask=k < K, other=0).to(tl.int64)
        value = tl.load(values + n * K + k, mask=k < K, other=0).to(tl.float32)
        here = (k < K)[:, None] & (d < D)[None, :]
        sums += value[:, None] * tl.load(W + row[:, None] * D + d[None, :], mask=here, other=0).to(tl.float32)
    tl.store(out + n * D + d, tl.sum(sums, 0), mask=d < D)


@triton.jit
def _rows(
    x,
    tokens,
    weights,
    latents,
    firsts,
    lasts,
    W,
    out,
    extra,
    dots,
    S,
    D,
    WITH_DOTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sum over a stretch of the list of weight times x[token]; one program per stretch.

    The first S stretches are written to `out`, the others to `extra`. With dots, <W[latent], x[token]> of each
    entry too, W's row being read once and x's rows not again.
    """
    unit = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    last = tl.load(lasts + unit)
    if WITH_DOTS:
        own = tl.load(W + tl.load(latents + unit) * D + d, mask=d < D, other=0).to(tl.float32)
    for start in range(tl.load(firsts + unit), last, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        token = tl.load(tokens + m, mask=m < last, other=0).to(tl.int64)
        weight = tl.load(weights + m, mask=m < last, other=0).to(tl.float32)
        here = (m < last)[:, None] & (d < D)[None, :]
        tile = tl.load(x + token[:, None] * D + d[None, :], mask=here, other=0).to(tl.float32)
        sums += weight[:, None] * tile
        if WITH_DOTS:
            tl.store(dots + m, tl.sum(tile * own[None, :], 1), mask=m < last)
    if unit < S:
        tl.store(out + unit * D + d, tl.sum(sums, 0), mask=d < D)
    else:
        tl.store(extra + (unit - S) * D + d, tl.sum(sums, 0), mask=d < D)


@triton.jit
def _add_extra(out, extra, ends, D, BLOCK_D: tl.constexpr):
    """Adds to each latent's row, in their order, those of its further stretches; one program per latent."""
    s = tl.program_id(0).to(tl.int64)
    first = tl.load(ends + s)
    last = tl.load(ends + s + 1)
    if first < last:
        d = tl.arange(0, BLOCK_D)
        row = tl.load(out + s * D + d, mask=d < D, other=0)
        for e in range(first, last):
            row += tl.load(extra + e * D + d, mask=d < D, other=0)
        tl.store(out + s * D + d, row, mask=d < D)


@final
@dataclass(frozen=True)
class TritonKernel(SparseGrads):
    """The list sorted by latent, as `GatherKernel` has it, summed by kernels, a program for each stretch of it."""

    name: ClassVar[str] = "triton"
    listed: GatherKernel
    stretches: Stretches
    num_tokens: int

    @property
    def latents(self) -> Tensor:
        """Those of the sorted list."""
        return self.listed.latents

    @property
    def tokens(self) -> Tensor:
        """Those of the sorted list."""
        return self.listed.tokens

    @property
    def values(self) -> Tensor:
        """Those of the sorted list."""
        return self.listed.values

    @staticmethod
    def decode(values_NK: Tensor, indices_NK: Tensor, W_SD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """By one program per token; K rows of W are read, there is no dense product."""
        (count, k), width = indices_NK.shape, W_SD.shape[1]
        out_ND = W_SD.new_empty(count, width, dtype=torch.float32)
        if count:
            with torch.cuda.device_of(W_SD):
                _decode[(count,)](
                    values_NK.contiguous(), indices_NK.contiguous(), W_SD.contiguous(), out_ND, k, width, **_tile(width)
                )
        return out_ND

    @classmethod
    def of(cls, indices_NK: Tensor, values_NK: Tensor, d_sae: int, dtype: torch.dtype | None = None) -> TritonKernel:
        """The sorted list, in stretches; there is no dense product."""
        listed = GatherKernel.of(indices_NK, values_NK, d_sae)
        return cls(listed, Stretches.of(listed.starts_S, listed.values.numel()), len(indices_NK))

    def rows(self, x_ND: Tensor, weights_M: Tensor) -> Tensor:
        """For each latent the sum over its entries of weight times x[token]: (S, D)."""
        return self._sum(x_ND, weights_M, None, None)

    def rows_and_dots(self, x_ND: Tensor, W_SD: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one pass over the rows of x."""
        dots_M = x_ND.new_empty(self.values.shape, dtype=torch.float32)
        return self._sum(x_ND, self.values, W_SD, dots_M), dots_M

    def sums(self, bias: Bias, weights_M: Tensor) -> Tensor:
        """The rows of what tokens took of the bias: of its rows, one."""
        return self.rows(bias.taken_by(self.num_tokens), weights_M).T.view_as(bias.rows)

    def _sum(self, x_ND: Tensor, weights_M: Tensor, W_SD: Tensor | None, dots_M: Tensor | None) -> Tensor:
        width, cut, d_sae = x_ND.shape[1], self.stretches, len(self.listed.starts_S)
        out_SD = x_ND.new_empty(d_sae, width, dtype=torch.float32)
        extra_ED = x_ND.new_empty(cut.num_extra, width, dtype=torch.float32)
        x_ND, tile = x_ND.contiguous(), _tile(width)
        W_SD = W_SD if W_SD is None else W_SD.contiguous()
        with torch.cuda.device_of(x_ND):
            _rows[(len(cut.latents_U),)](
                x_ND,
                self.tokens,
                weights_M,
                cut.latents_U,
                cut.firsts_U,
                cut.lasts_U,
                W_SD,
                out_SD,
                extra_ED,
                dots_M,
                d_sae,
                width,
                WITH_DOTS=W_SD is not None,
                **tile,
            )
            if cut.num_extra:
                _add_extra[(d_sae,)](
                    out_SD, extra_ED, cut.ends_S1, width, BLOCK_D=tile["BLOCK_D"], num_warps=tile["num_warps"]
                )
        return out_SD


@dataclass(frozen=True)
class Stretches:
    """The sorted list cut up, so that a latent that is active on nearly every token keeps no program busy for long.

    Stretch s < S is the first of latent s, empty where it has no entry. The further ones of all latents follow in
    order; `ends_S1[s]` to `ends_S1[s + 1]` are those of latent s, counted from the first of them. There is room
    for as many as there could be, so that nothing is asked of the device; those left over are empty.
    """

    latents_U: Tensor
    firsts_U: Tensor
    lasts_U: Tensor
    ends_S1: Tensor
    num_extra: int

    @classmethod
    def of(cls, starts_S: Tensor, length: int) -> Stretches:
        """Stretches of at most four times the entries that a latent has on average, and at least 64."""
        d_sae, device = len(starts_S), starts_S.device
        most = max(SHORTEST, 4 * length // d_sae)
        num_extra = length // most
        starts_S1 = torch.cat([starts_S, starts_S.new_full((1,), length)])
        extra_S = (starts_S1.diff() - 1).clamp_min(0) // most
        ends_S1 = torch.cat([extra_S.new_zeros(1), extra_S.cumsum(0)])
        number_E = torch.arange(num_extra, device=device)
        owners_E = torch.searchsorted(ends_S1[1:], number_E, right=True)  # S for those left over
        latents_U = torch.cat([torch.arange(d_sae, device=device), owners_E.clamp_max(d_sae - 1)])
        place_E = torch.where(owners_E < d_sae, number_E - ends_S1[owners_E] + 1, length)
        firsts_U = starts_S1[latents_U]
        firsts_U[d_sae:] += place_E * most
        lasts_U = torch.minimum(firsts_U + most, starts_S1[latents_U + 1])
        return cls(latents_U, firsts_U, lasts_U, ends_S1, num_extra)


def _tile(width: int) -> dict[str, int]:
    """The sizes with which a kernel is compiled for rows of this width."""
    block = max(16, triton.next_power_of_2(width))
    warps = min(MOST_WARPS, triton.cdiv(block, ROW_NUMBERS_PER_WARP))
    rows = min(MOST_ROWS, max(1, warps * TILE_NUMBERS_PER_WARP // block))
    return {"BLOCK_M": rows, "BLOCK_D": block, "num_warps": warps}
