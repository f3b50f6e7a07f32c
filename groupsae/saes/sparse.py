"""The sparse encoder: one dense product forward, a few rows per token backward.

Of a TopK step only W_enc z is dense (2 D S FLOPs per token). Its gradient is not: dW_enc[s] sums
g[n, k] z[n] over the (n, k) that chose latent s, which is an `embedding_bag` over the transposed
list of indices (2 D K per token). No tensor of N x S is kept for the backward pass;
pre-activations live in one reused tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

TILE_NUMBERS = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Pre-activations held at once. On CPUs 16 MiB: larger fresh tensors are mapped anew at every step."""
BLOCK = 16
"""Numbers per block in the first stage of `top_k`."""


def topk_pre_activations(z_ND: Tensor, W_SD: Tensor, b_S: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of W z + b per token and their numbers, (N, K) each; with gradients for z, W and b."""
    return _TopKPreActivations.apply(z_ND, W_SD, b_S, k)


class _TopKPreActivations(Function):
    @staticmethod
    def forward(ctx: Any, z_ND: Tensor, W_SD: Tensor, b_S: Tensor, k: int) -> tuple[Tensor, Tensor]:
        count, d_sae = len(z_ND), len(W_SD)
        rows = max(1, min(count, TILE_NUMBERS.get(z_ND.device.type, 256 * 2**20) // d_sae))
        tile_RS = z_ND.new_empty(rows, d_sae)
        parts = [top_k(torch.addmm(b_S, z_RD, W_SD.T, out=tile_RS[: len(z_RD)]), k) for z_RD in z_ND.split(rows)]
        values_NK, indices_NK = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(z_ND, W_SD, indices_NK)
        ctx.mark_non_differentiable(indices_NK)
        return values_NK, indices_NK

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        z_ND, W_SD, indices_NK = ctx.saved_tensors
        grad_z_ND = grad_W_SD = grad_b_S = None
        if ctx.needs_input_grad[0]:
            grad_z_ND = F.embedding_bag(indices_NK, W_SD, per_sample_weights=grad_NK.contiguous(), mode="sum")
        if ctx.needs_input_grad[1]:
            grad_W_SD = transposed_rows(z_ND, grad_NK, indices_NK, len(W_SD))
        if ctx.needs_input_grad[2]:
            grad_b_S = grad_NK.new_zeros(len(W_SD)).index_add_(0, indices_NK.flatten(), grad_NK.flatten())
        return grad_z_ND, grad_W_SD, grad_b_S, None


def transposed_rows(x_ND: Tensor, values_NK: Tensor, indices_NK: Tensor, num_rows: int) -> Tensor:
    """For each row s the sum over (n, k) with indices[n, k] = s of values[n, k] x[n]: (S, D)."""
    order = indices_NK.flatten().argsort(stable=True)
    counts_S = torch.bincount(indices_NK.flatten(), minlength=num_rows)
    starts_S = counts_S.cumsum(0) - counts_S
    tokens = order // indices_NK.shape[1]
    return F.embedding_bag(tokens, x_ND, starts_S, per_sample_weights=values_NK.flatten()[order], mode="sum")


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
