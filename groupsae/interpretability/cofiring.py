"""Which latents of one SAE fire on the same tokens."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from groupsae.interpretability.firings import Firings

PAIRS_AT_ONCE = 4 * 2**20
"""Pairs of latents that are counted at once, at most."""


def most_together(firings: Firings, most: int, num_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """For each latent the others with the largest Jaccard index of firing sets: numbers and indices (S, most).

    Number -1 and index 0 where fewer fire together with it. A part of all pairs is held at a time.
    """
    ones_M = np.ones(len(firings.latent_M), dtype=np.int32)
    form = (firings.count, num_positions)
    fires_SN = sparse.csr_array((ones_M, firings.position_M, firings.start), shape=form)
    id_SK = np.full((firings.count, most), -1, dtype=np.int32)
    index_SK = np.zeros((firings.count, most), dtype=np.float32)
    rows, fires_NS = max(1, PAIRS_AT_ONCE // max(firings.count, 1)), fires_SN.T.tocsr()
    for start in range(0, firings.count, rows):
        together_RS = (fires_SN[start : start + rows] @ fires_NS).toarray()
        here = slice(start, start + len(together_RS))
        either_RS = firings.counts[here, None] + firings.counts[None] - together_RS
        jaccard_RS = torch.from_numpy((together_RS / np.maximum(either_RS, 1)).astype(np.float32))
        jaccard_RS[torch.arange(len(jaccard_RS)), torch.arange(start, here.stop)] = 0
        best_RK, other_RK = (part.numpy() for part in jaccard_RS.topk(min(most, firings.count), dim=1))
        shown = slice(0, best_RK.shape[1])
        index_SK[here, shown], id_SK[here, shown] = best_RK, np.where(best_RK > 0, other_RK, -1)
    return id_SK, index_SK
