"""The sparse encoder: one dense product forward, a few rows per token backward.

Of a TopK step only W_enc z is dense (2 D S FLOPs per token). Its gradient is not: dW_enc[s] sums
g[n, k] z[n] over the (n, k) that chose latent s, which is an `embedding_bag` over the transposed
list of indices (2 D K per token). No tensor of N x S is kept for the backward pass;
pre-activations live in one reused tile.
"""

from __future__ import annotations

from dataclasses import dataclass
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


def topk_autoencode(
    z_ND: Tensor, W_enc_SD: Tensor, b_S: Tensor, W_dec_SD: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """z_hat without b_dec (N, D), the latents' values (N, K) after ReLU, and their numbers (N, K).

    The whole TopK step but its loss: encoder, selection, ReLU and decoder in one node, so that both
    weight gradients share one transposed list. Gradients for both matrices, b and z.
    """
    return _TopKAutoencode.apply(z_ND, W_enc_SD, b_S, W_dec_SD, k)


class _TopKPreActivations(Function):
    @staticmethod
    def forward(ctx: Any, z_ND: Tensor, W_SD: Tensor, b_S: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values_NK, indices_NK = _select(z_ND, W_SD, b_S, k)
        ctx.save_for_backward(z_ND, W_SD, indices_NK)
        ctx.mark_non_differentiable(indices_NK)
        return values_NK, indices_NK

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        z_ND, W_SD, indices_NK = ctx.saved_tensors
        needed = ctx.needs_input_grad
        transposed = Transposed.of(indices_NK, len(W_SD)) if needed[1] else None
        return *_encoder_gradients(needed, z_ND, W_SD, grad_NK, indices_NK, transposed), None


class _TopKAutoencode(Function):
    @staticmethod
    def forward(
        ctx: Any, z_ND: Tensor, W_enc_SD: Tensor, b_S: Tensor, W_dec_SD: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        pre_NK, indices_NK = _select(z_ND, W_enc_SD, b_S, k)
        values_NK = pre_NK.relu_()
        with torch.enable_grad():  # PyTorch's own gradient of the weights of an embedding_bag, kept for backward
            inner_NK = values_NK.detach().requires_grad_()
            decoded_ND = F.embedding_bag(indices_NK, W_dec_SD.detach(), per_sample_weights=inner_NK, mode="sum")
        ctx.inner = (inner_NK, decoded_ND)
        ctx.save_for_backward(z_ND, W_enc_SD, W_dec_SD, values_NK, indices_NK)
        ctx.mark_non_differentiable(indices_NK)
        return decoded_ND.detach(), values_NK, indices_NK

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor, grad_values_NK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        z_ND, W_enc_SD, W_dec_SD, values_NK, indices_NK = ctx.saved_tensors
        inner_NK, decoded_ND = ctx.inner
        (grad_NK,) = torch.autograd.grad(decoded_ND, inner_NK, grad_ND.contiguous())
        grad_NK = (grad_NK + grad_values_NK).masked_fill_(values_NK == 0, 0)
        needs_z, needs_enc, needs_b, needs_dec, _k = ctx.needs_input_grad
        transposed = Transposed.of(indices_NK, len(W_dec_SD)) if needs_enc or needs_dec else None
        encoder = _encoder_gradients((needs_z, needs_enc, needs_b), z_ND, W_enc_SD, grad_NK, indices_NK, transposed)
        decoder = transposed.rows(grad_ND, values_NK) if needs_dec else None
        return *encoder, decoder, None


def _select(z_ND: Tensor, W_SD: Tensor, b_S: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of W z + b per token, tile by tile of tokens."""
    count, d_sae = len(z_ND), len(W_SD)
    rows = max(1, min(count, TILE_NUMBERS.get(z_ND.device.type, 256 * 2**20) // d_sae))
    tile_RS = z_ND.new_empty(rows, d_sae)
    parts = [top_k(torch.addmm(b_S, z_RD, W_SD.T, out=tile_RS[: len(z_RD)]), k) for z_RD in z_ND.split(rows)]
    values_NK, indices_NK = (torch.cat(part) for part in zip(*parts, strict=True))
    return values_NK, indices_NK


def _encoder_gradients(
    needed: tuple[bool, ...],
    z_ND: Tensor,
    W_SD: Tensor,
    grad_NK: Tensor,
    indices_NK: Tensor,
    transposed: Transposed | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of z, W and b of W z + b, from those of the chosen pre-activations."""
    grad_z_ND = grad_W_SD = grad_b_S = None
    if needed[0]:
        grad_z_ND = F.embedding_bag(indices_NK, W_SD, per_sample_weights=grad_NK.contiguous(), mode="sum")
    if needed[1]:
        grad_W_SD = transposed.rows(z_ND, grad_NK)
    if needed[2]:
        grad_b_S = grad_NK.new_zeros(len(W_SD)).index_add_(0, indices_NK.flatten(), grad_NK.flatten())
    return grad_z_ND, grad_W_SD, grad_b_S


@dataclass(frozen=True)
class Transposed:
    """A list of indices (N, K) sorted by what they point to: for each of S rows, which (n, k) chose it."""

    order: Tensor
    tokens: Tensor
    starts_S: Tensor

    @classmethod
    def of(cls, indices_NK: Tensor, num_rows: int) -> Transposed:
        """The transposed list; the order within a row is that of the tokens."""
        order = indices_NK.flatten().argsort(stable=True)
        counts_S = torch.bincount(indices_NK.flatten(), minlength=num_rows)
        return cls(order, order // indices_NK.shape[1], counts_S.cumsum(0) - counts_S)

    def rows(self, x_ND: Tensor, values_NK: Tensor) -> Tensor:
        """For each row s the sum over (n, k) with indices[n, k] = s of values[n, k] x[n]: (S, D)."""
        weights = values_NK.flatten()[self.order]
        return F.embedding_bag(self.tokens, x_ND, self.starts_S, per_sample_weights=weights, mode="sum")


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
