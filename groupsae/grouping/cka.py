"""Linear CKA between layers, from small batches, without the bias that small batches have."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource, worked_stream
from groupsae.activations.stats import ActivationStats
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import TextError
from groupsae.grouping.centering import Centering, Progress, require_reachable, stats_for
from groupsae.grouping.distances import Distances

BLOCK_TOKENS = 256
"""Tokens whose similarities are compared at once."""
FOLDS = 20
"""Parts of the batches, one left out at a time, from which the standard error is taken."""


def cka_distances(
    source: ActivationSource,
    num_tokens: int,
    seed: int = 0,
    until_stderr: float | None = None,
    progress: Progress | None = None,
    stats: ActivationStats | None = None,
    ranks: Ranks = ALONE,
) -> Distances:
    """1 - linear CKA of all pairs of hookpoints, in [0, 1].

        CKA(p, q) = mean_b HSIC_1(K_p, K_q) / sqrt(mean_b HSIC_1(K_p, K_p) * mean_b HSIC_1(K_q, K_q))
        HSIC_1(K, M) = [tr(K M) + 1'K1 1'M1 / ((n-1)(n-2)) - 2/(n-2) 1'K M 1] / (n (n-3)),  diagonals of K, M zero

    over blocks b of n = `BLOCK_TOKENS` tokens, K = X X' of centered activations (minibatch CKA: Nguyen,
    Raghu and Kornblith 2021, equations 2 to 4; HSIC_1: Song et al. 2012). HSIC_1 is unbiased and
    numerators and denominators are averaged before the ratio, so the block's size does not matter. A block
    takes its tokens from all rows of its batch. The ratio is clamped to [0, 1]: noise can leave it. A
    layer that does not vary is like no other: distance 1.

    `standard_error`: jackknife over `FOLDS` parts of the batches; None for fewer batches than parts. It takes batches
    as independent, so it is too small where documents are longer than a row, and so are in several batches.
    Arguments and errors as in `angular_distances`; TextError also for fewer than 4 tokens in every batch.
    """
    require_reachable(until_stderr)
    center = Centering(stats_for(source, num_tokens, seed, stats, progress, ranks).mean_LD, source.device)
    layers = len(source.hookpoints)
    hsic_FLL = np.zeros((FOLDS, layers, layers))
    tokens = batches = 0
    hsic = lambda x_LND, _: [torch.from_numpy(_summed_hsic(x_LND, center))]  # noqa: E731
    for count, (sum_LL,) in worked_stream(source, num_tokens, seed, hsic, ranks=ranks):
        hsic_FLL[batches % FOLDS] += sum_LL.cpu().numpy()
        tokens, batches = tokens + count, batches + 1
        if progress:
            progress(count)
        if until_stderr is not None and batches >= FOLDS and _jackknife(hsic_FLL).max() < until_stderr:
            break
    if not hsic_FLL.any() and tokens < 4:
        raise TextError(f"CKA compares at least 4 tokens at once; the source gave {tokens}. Raise num_tokens.")
    errors = _jackknife(hsic_FLL) if batches >= FOLDS else None
    return Distances(source.hookpoints, _distance(hsic_FLL.sum(axis=0)), "cka", tokens, errors)


def _summed_hsic(x_LND: Tensor, center: Centering) -> np.ndarray:
    """The sum of HSIC_1 of all pairs (L, L) over the blocks of a batch; each block weighs the same."""
    tokens = x_LND.shape[1]
    blocks = max(1, round(tokens / BLOCK_TOKENS))
    total_LL = np.zeros((len(x_LND), len(x_LND)))
    for first in range(blocks):
        u_LnD = center(x_LND[:, first::blocks])
        if u_LnD.shape[1] >= 4:
            total_LL += hsic_1(u_LnD)
    return total_LL


def hsic_1(u_LnD: Tensor) -> np.ndarray:
    """The unbiased HSIC_1 (L, L), float64, of the linear kernels of all pairs of layers; n >= 4 tokens."""
    tokens = u_LnD.shape[1]
    kernel_Lnn = torch.bmm(u_LnD, u_LnD.transpose(1, 2)).cpu().double()
    kernel_Lnn.diagonal(dim1=1, dim2=2).zero_()
    rows_Ln = kernel_Lnn.sum(dim=2)
    all_L = rows_Ln.sum(dim=1)
    flat_LM = kernel_Lnn.flatten(1)
    value_LL = flat_LM @ flat_LM.T
    value_LL += torch.outer(all_L, all_L) / ((tokens - 1) * (tokens - 2))
    value_LL -= 2 / (tokens - 2) * (rows_Ln @ rows_Ln.T)
    return (value_LL / (tokens * (tokens - 3))).numpy()


def _distance(hsic_LL: np.ndarray) -> np.ndarray:
    own_L = np.diag(hsic_LL).clip(min=0)
    scale_LL = np.sqrt(np.outer(own_L, own_L))
    ratio_LL = np.divide(hsic_LL, scale_LL, out=np.zeros_like(hsic_LL), where=scale_LL > 0)
    distance_LL = 1 - (ratio_LL + ratio_LL.T).clip(0, 2) / 2
    np.fill_diagonal(distance_LL, 0)
    return distance_LL


def _jackknife(hsic_FLL: np.ndarray) -> np.ndarray:
    left_out_FLL = np.stack([_distance(hsic_FLL.sum(axis=0) - fold_LL) for fold_LL in hsic_FLL])
    folds = len(hsic_FLL)
    return np.sqrt((folds - 1) * left_out_FLL.var(axis=0))
