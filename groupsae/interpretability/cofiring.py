"""Which latents of one SAE fire on the same tokens."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from groupsae.interpretability.firings import Firings

PAIRS_AT_ONCE = 4 * 2**20
"""Pairs of latents that are counted at once, at most."""


def most_together(firings: Firings, most: int, num_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """For each latent the others with the largest Jaccard index of firing sets: numbers and indices (S, most).

    Number -1 and index 0 where fewer fire together with it. Takes memory of the pairs that fire together.
    """
    ones_M = np.ones(len(firings.latent_M), dtype=np.int32)
    form = (firings.count, num_positions)
    fires_SN = sparse.csr_array((ones_M, firings.position_M, firings.start), shape=form)
    id_SK = np.full((firings.count, most), -1, dtype=np.int32)
    index_SK = np.zeros((firings.count, most), dtype=np.float32)
    rows, fires_NS = max(1, PAIRS_AT_ONCE // max(firings.count, 1)), fires_SN.T.tocsr()
    for start in range(0, firings.count, rows):
        together = (fires_SN[start : start + rows] @ fires_NS).tocoo()
        i, j = together.row + start, together.col
        jaccard = together.data / (firings.counts[i] + firings.counts[j] - together.data)
        other = i != j
        i, j, jaccard = i[other], j[other], jaccard[other]
        order = np.lexsort((j, -jaccard, i))
        i, j, jaccard = i[order], j[order], jaccard[order]
        rank = np.arange(len(i)) - np.searchsorted(i, i)
        keep = rank < most
        id_SK[i[keep], rank[keep]], index_SK[i[keep], rank[keep]] = j[keep], jaccard[keep]
    return id_SK, index_SK
