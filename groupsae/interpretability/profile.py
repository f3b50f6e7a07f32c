"""What the firings of latents amount to: histograms of values, the tokens they fire on, layers they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from groupsae.interpretability.firings import Firings

HISTOGRAM_BINS = 16
"""Equal bins from 0 to a latent's largest value."""


def peaks(firings: Firings) -> np.ndarray:
    """The largest value of each latent (S,); 0 where it never fires."""
    found_S = np.zeros(firings.count, dtype=np.float32)
    np.maximum.at(found_S, firings.latent_M, firings.value_M)
    return found_S


def mean_values(firings: Firings) -> np.ndarray:
    """The mean value of each latent where it fires (S,); 0 where it never does."""
    sum_S = np.bincount(firings.latent_M, weights=firings.value_M, minlength=firings.count)
    return (sum_S / np.maximum(firings.counts, 1)).astype(np.float32)


def histograms(firings: Firings) -> np.ndarray:
    """Firings by value, in `HISTOGRAM_BINS` equal bins from 0 to each latent's largest value (S, B)."""
    peak_S = np.maximum(peaks(firings), np.finfo(np.float32).tiny)
    bin_M = np.minimum((firings.value_M / peak_S[firings.latent_M] * HISTOGRAM_BINS).astype(int), HISTOGRAM_BINS - 1)
    flat = np.bincount(firings.latent_M * HISTOGRAM_BINS + bin_M, minlength=firings.count * HISTOGRAM_BINS)
    return flat.reshape(firings.count, HISTOGRAM_BINS).astype(np.int32)


def top_tokens(firings: Firings, ids_N: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that hold most of each latent's values: ids and shares of the sum (S, most); id -1 where none is left.

    The share of the first one is the latent's token purity.
    """
    vocabulary = int(ids_N.max(initial=0)) + 1
    key_M = firings.latent_M.astype(np.int64) * vocabulary + ids_N[firings.position_M]
    key_U, of_M = np.unique(key_M, return_inverse=True)
    sum_U = np.bincount(of_M, weights=firings.value_M, minlength=len(key_U))
    latent_U, token_U = key_U // vocabulary, key_U % vocabulary
    order_U = np.lexsort((-sum_U, latent_U))
    per_latent_S = np.bincount(latent_U, minlength=firings.count)
    rank_U = np.arange(len(key_U)) - (np.cumsum(per_latent_S) - per_latent_S)[latent_U[order_U]]
    shown_U = order_U[rank_U < most]
    rank_U = rank_U[rank_U < most]
    total_S = np.bincount(latent_U, weights=sum_U, minlength=firings.count)
    id_ST = np.full((firings.count, most), -1, dtype=np.int32)
    share_ST = np.zeros((firings.count, most), dtype=np.float32)
    id_ST[latent_U[shown_U], rank_U] = token_U[shown_U]
    share_ST[latent_U[shown_U], rank_U] = sum_U[shown_U] / total_S[latent_U[shown_U]]
    return id_ST, share_ST


def layer_overlaps(layers: Sequence[Firings], num_positions: int) -> np.ndarray:
    """How far a latent fires on the same tokens at two layers: Jaccard indices (S, L, L); NaN where it is silent.

    J(l, m) = tokens on which it fires at both / tokens on which it fires at one of them at least.
    """
    count = layers[0].count
    if len(layers) == 1:
        return np.where(layers[0].counts > 0, 1, np.nan).astype(np.float32)[:, None, None]
    keys = [one.latent_M.astype(np.int64) * num_positions + one.position_M for one in layers]
    key_U = _distinct(np.concatenate(keys))
    latent_U = key_U // num_positions
    fires_LU = np.zeros((len(layers), len(key_U)), dtype=bool)
    for fires_U, key_M in zip(fires_LU, keys, strict=True):
        fires_U[np.searchsorted(key_U, key_M)] = True
    both_SLL = np.zeros((count, len(layers), len(layers)))
    for one in range(len(layers)):
        for other in range(one, len(layers)):
            both_S = np.bincount(latent_U[fires_LU[one] & fires_LU[other]], minlength=count)
            both_SLL[:, one, other] = both_SLL[:, other, one] = both_S
    own_SL = np.stack([one.counts for one in layers], axis=1)
    either_SLL = own_SL[:, :, None] + own_SL[:, None] - both_SLL
    return np.where(either_SLL > 0, both_SLL / np.maximum(either_SLL, 1), np.nan).astype(np.float32)


def _distinct(key_M: np.ndarray) -> np.ndarray:
    """The different numbers, in order; by sorting, which is quicker than a hash table for as many."""
    key_M = np.sort(key_M)
    return key_M[np.concatenate([[True], key_M[1:] != key_M[:-1]])] if len(key_M) else key_M
