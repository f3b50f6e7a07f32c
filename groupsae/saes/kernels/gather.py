"""The sparse step: one dense product forward, a few rows per token backward.

Of a step only the pre-activations are a dense product (2 D S FLOPs per token). Where K of S latents
are active, decoding and every gradient touch K rows per token, 2 D K FLOPs each. Weight gradients are
`embedding_bag`s over the transposed list of active latents: for each latent, the tokens it was active
on. No tensor of N x S is kept for the backward pass; pre-activations live in one reused tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from groupsae.saes.kernels.sparse_grads import SparseGrads
from groupsae.saes.layer_maps import Bias

TILE_NUMBERS = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Pre-activations held at once. On CPUs 16 MiB: larger fresh tensors are mapped anew at every step."""
BLOCK = 16
"""Numbers per block in the first stage of `top_k`."""

Select = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From pre-activations (R, S) the chosen values and their latents, (R, K) each."""


def tile_rows(z_ND: Tensor, d_sae: int) -> int:
    """How many rows of z have their pre-activations held at once."""
    return max(1, min(len(z_ND), TILE_NUMBERS.get(z_ND.device.type, TILE_NUMBERS["cuda"]) // d_sae))


def select(
    z_ND: Tensor, W_SD: Tensor, bias: Bias, choose: Select, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """What `choose` takes from the pre-activations W z + b: (N, K) values and latents, with gradients for z, W and b.

    `dtype` is the precision of the product, z's own by default; values are of z's.
    """
    return _Select.apply(z_ND, W_SD, bias.rows, bias.layers_N, choose, dtype or z_ND.dtype)


class _Select(Function):
    @staticmethod
    def forward(
        ctx: Any,
        z_ND: Tensor,
        W_SD: Tensor,
        b: Tensor,
        layers_N: Tensor | None,
        choose: Select,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        rows, bias = tile_rows(z_ND, len(W_SD)), Bias(b, layers_N)
        tile_RS, W_DS = z_ND.new_empty(rows, len(W_SD), dtype=dtype), W_SD.to(dtype).T
        # The bias is added while the tile is in the cache: addmm would fill the tile with it first.
        parts = [
            choose(of_tile.add_to(torch.mm(z_RD, W_DS, out=tile_RS[: len(z_RD)])))
            for z_RD, of_tile in zip(z_ND.to(dtype).split(rows), bias.to(dtype).split(rows), strict=False)
        ]
        values_NK, indices_NK = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(z_ND, W_SD, b, layers_N, indices_NK)
        ctx.mark_non_differentiable(indices_NK)
        return values_NK.to(z_ND.dtype), indices_NK

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        z_ND, W_SD, b, layers_N, indices_NK = ctx.saved_tensors
        needs_z, needs_W, needs_b = ctx.needs_input_grad[:3]
        grad_NK = grad_NK.contiguous()
        grad_z_ND = F.embedding_bag(indices_NK, W_SD, per_sample_weights=grad_NK, mode="sum") if needs_z else None
        if not (needs_W or needs_b):
            return grad_z_ND, None, None, None, None, None
        chosen = GatherKernel.of(indices_NK, grad_NK, len(W_SD))
        grad_b = chosen.sums(Bias(b, layers_N), chosen.values)
        return grad_z_ND, chosen.rows(z_ND, chosen.values), grad_b, None, None, None


def squared_error(
    z_ND: Tensor,
    values_NK: Tensor,
    indices_NK: Tensor,
    W_enc_SD: Tensor,
    bias: Bias,
    W_dec_SD: Tensor,
    b_dec_D: Tensor,
    kernel: type[SparseGrads] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """sum_t ||z_hat_t - z_t||^2, and z - z_hat (N, D), from the active latents; gradients for the four weights.

    `values_NK` are those of ReLU(W_enc (z - b_dec) + bias) at `indices_NK`, however chosen; the gradient goes through
    those above zero, and not through the choice. z and z - z_hat get no gradient. `kernel` is how sums over active
    latents are computed, `GatherKernel` by default, and `dtype` the precision of its dense products, if it has any.
    """
    weights = (W_enc_SD, bias.rows, bias.layers_N, W_dec_SD, b_dec_D)
    return _SquaredError.apply(z_ND, values_NK, indices_NK, *weights, kernel or GatherKernel, dtype)


class _SquaredError(Function):
    @staticmethod
    def forward(
        ctx: Any,
        z_ND: Tensor,
        values_NK: Tensor,
        indices_NK: Tensor,
        W_enc_SD: Tensor,
        b_enc: Tensor,
        layers_N: Tensor | None,
        W_dec_SD: Tensor,
        b_dec_D: Tensor,
        kernel: type[SparseGrads],
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        centered_ND = z_ND - b_dec_D
        e_ND = centered_ND - kernel.decode(values_NK, indices_NK, W_dec_SD, dtype)
        ctx.kernel, ctx.dtype = kernel, dtype
        ctx.save_for_backward(centered_ND, e_ND, values_NK, indices_NK, W_enc_SD, b_enc, layers_N, W_dec_SD)
        ctx.mark_non_differentiable(e_ND)
        return torch.linalg.vector_norm(e_ND).square(), e_ND

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        centered_ND, e_ND, values_NK, indices_NK, W_enc_SD, b_enc, layers_N, W_dec_SD = ctx.saved_tensors
        grad_ND = e_ND * (-2 * grad)
        active = ctx.kernel.of(indices_NK, values_NK, len(W_dec_SD), ctx.dtype)
        grad_W_dec_SD, grad_M = active.rows_and_dots(grad_ND, W_dec_SD)
        grad_M *= active.values > 0
        grad_b_enc = active.sums(Bias(b_enc, layers_N), grad_M)
        grad_W_enc_SD = active.rows(centered_ND, grad_M)
        grad_b_dec_D = grad_ND.sum(0) - grad_b_enc.view(-1, len(W_enc_SD)).sum(0) @ W_enc_SD
        return None, None, None, grad_W_enc_SD, grad_b_enc, None, grad_W_dec_SD, grad_b_dec_D, None, None


@final
@dataclass(frozen=True)
class GatherKernel(SparseGrads):
    """The entries as a list sorted by latent, then by token; latent s has those from `starts_S[s]` on."""

    name: ClassVar[str] = "gather"
    latents: Tensor
    tokens: Tensor
    values: Tensor
    starts_S: Tensor

    @staticmethod
    def decode(values_NK: Tensor, indices_NK: Tensor, W_SD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """K rows of W are read for each token; there is no dense product."""
        return F.embedding_bag(indices_NK, W_SD, per_sample_weights=values_NK, mode="sum")

    @classmethod
    def of(cls, indices_NK: Tensor, values_NK: Tensor, d_sae: int, dtype: torch.dtype | None = None) -> GatherKernel:
        """The transposed list; there is no dense product."""
        latents, order, starts_S = by_latent(indices_NK, d_sae)
        return cls(latents, order // indices_NK.shape[1], values_NK.flatten()[order], starts_S)

    def rows(self, x_ND: Tensor, weights_M: Tensor) -> Tensor:
        """For each latent the sum over its entries of weight times x[token]: (S, D)."""
        return F.embedding_bag(self.tokens, x_ND, self.starts_S, per_sample_weights=weights_M, mode="sum")

    def rows_and_dots(self, x_ND: Tensor, W_SD: Tensor) -> tuple[Tensor, Tensor]:
        """`rows` weighted by the values, and for each entry <W[latent], x[token]>, (M,).

        The second is what PyTorch takes for the gradient of the weights where W is that of the rows.
        """
        with torch.enable_grad():
            weights_M = self.values.detach().requires_grad_()
            rows_SD = self.rows(x_ND, weights_M)
        (dots_M,) = torch.autograd.grad(rows_SD, weights_M, W_SD)
        return rows_SD.detach(), dots_M

    def sums(self, bias: Bias, weights_M: Tensor) -> Tensor:
        """For each number of a bias the sum of the weights of the entries it was added to."""
        return bias.sums(self.tokens, self.latents, weights_M)


def by_latent(indices_NK: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of (N, K) by latent, then by token: their latents and places (M,), and where latents start (S,)."""
    narrow = torch.int16 if d_sae <= torch.iinfo(torch.int16).max else torch.int32  # sorts faster
    latents, order = indices_NK.flatten().to(narrow).sort(stable=True)
    starts_S = torch.searchsorted(latents, torch.arange(d_sae, device=latents.device, dtype=narrow))
    return latents, order, starts_S


def top_k(x_NS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest numbers of each row and where they stand, (N, K) each, in no order.

    On CPUs, where `topk` is slow on long rows, in two exact stages: the k largest lie within the
    k blocks of the largest maxima. Blocks are strided, so that their maxima are one vector operation.
    """
    count, length = x_NS.shape
    blocks = length // BLOCK
    if x_NS.device.type != "cpu" or length % BLOCK or blocks < 2 * k:
        values_NK, indices_NK = x_NS.topk(k, dim=1, sorted=False)
        return values_NK, indices_NK
    x_NMB = x_NS.view(count, BLOCK, blocks)
    best_NK = x_NMB.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = x_NMB.gather(2, best_NK[:, None].expand(count, BLOCK, k)).flatten(1)
    values_NK, places_NK = candidates.topk(k, dim=1, sorted=False)
    return values_NK, places_NK // k * blocks + best_NK.gather(1, places_NK % k)
