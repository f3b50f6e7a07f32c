"""The sparse step of a nested TopK SAE: the errors of several numbers of latents from one list of active latents.

The latents of each token are ordered from the strongest to the weakest. Rank r takes part in every reconstruction of
more than r latents, so its gradient comes from the sum of their errors: one sum per stretch between two sizes. Rows of
weights are read as often as for the largest size alone; only the errors are kept once per size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from groupsae.saes.kernels.gather import GatherKernel, by_latent
from groupsae.saes.layer_maps import Bias


def nested_errors(
    z_ND: Tensor,
    values_NK: Tensor,
    indices_NK: Tensor,
    sizes: Sequence[int],
    W_enc_SD: Tensor,
    bias: Bias,
    W_dec_SD: Tensor,
    b_dec_D: Tensor,
) -> tuple[Tensor, Tensor]:
    """sum_t ||z_hat_t - z_t||^2 for each number of latents (M,), and z - z_hat of the largest (N, D).

    `values_NK` are those of ReLU(W_enc (z - b_dec) + bias) at `indices_NK`, from the largest to the smallest; `sizes`
    grow, and the last is K. There are gradients for the four weights, not through the choice, and none for z.
    """
    return _NestedErrors.apply(
        z_ND, values_NK, indices_NK, tuple(sizes), W_enc_SD, bias.rows, bias.layers_N, W_dec_SD, b_dec_D
    )


class _NestedErrors(Function):
    @staticmethod
    def forward(
        ctx: Any,
        z_ND: Tensor,
        values_NK: Tensor,
        indices_NK: Tensor,
        sizes: tuple[int, ...],
        W_enc_SD: Tensor,
        b_enc: Tensor,
        layers_N: Tensor | None,
        W_dec_SD: Tensor,
        b_dec_D: Tensor,
    ) -> tuple[Tensor, Tensor]:
        centered_ND = z_ND - b_dec_D
        e_MND = z_ND.new_empty(len(sizes), *z_ND.shape)
        before_ND = centered_ND
        for level, (low, high) in enumerate(pairwise((0, *sizes))):
            part_ND = GatherKernel.decode(values_NK[:, low:high], indices_NK[:, low:high], W_dec_SD)
            before_ND = torch.sub(before_ND, part_ND, out=e_MND[level])
        ctx.sizes = sizes
        ctx.save_for_backward(centered_ND, e_MND, values_NK, indices_NK, W_enc_SD, b_enc, layers_N, W_dec_SD)
        last_ND = e_MND[-1].clone()
        ctx.mark_non_differentiable(last_ND)
        return torch.linalg.vector_norm(e_MND.flatten(1), dim=1).square(), last_ND

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        centered_ND, e_MND, values_NK, indices_NK, W_enc_SD, b_enc, layers_N, W_dec_SD = ctx.saved_tensors
        grad_MND = e_MND * (-2 * grad_M)[:, None, None]
        for level in reversed(range(len(ctx.sizes) - 1)):  # what a rank of this stretch and all larger sizes ask for
            grad_MND[level] += grad_MND[level + 1]
        latents, order, starts_S = by_latent(indices_NK, len(W_dec_SD))
        tokens, ranks = order // indices_NK.shape[1], order % indices_NK.shape[1]
        active = GatherKernel(latents, tokens, values_NK.flatten()[order], starts_S)
        ends = torch.tensor(ctx.sizes[:-1], device=ranks.device)
        stretched = replace(active, tokens=tokens + torch.bucketize(ranks, ends, right=True) * len(centered_ND))
        grad_W_dec_SD, grad_entries = stretched.rows_and_dots(grad_MND.flatten(0, 1), W_dec_SD)
        grad_entries *= active.values > 0
        grad_b_enc = active.sums(Bias(b_enc, layers_N), grad_entries)
        grad_W_enc_SD = active.rows(centered_ND, grad_entries)
        grad_b_dec_D = grad_MND[0].sum(0) - grad_b_enc.view(-1, len(W_enc_SD)).sum(0) @ W_enc_SD
        return None, None, None, None, grad_W_enc_SD, grad_b_enc, None, grad_W_dec_SD, grad_b_dec_D
