"""AUROC of many latents at once: a few firings of each against other tokens."""

from __future__ import annotations

import numpy as np

from groupsae.interpretability.selection import some_of_each

LATENTS_AT_ONCE = 64


def sample_rows(
    latent_M: np.ndarray, usable_M: np.ndarray, count: int, most: int, random: np.random.Generator
) -> np.ndarray:
    """For each latent at most so many of its usable firings, drawn at random: their places in M (S, most), -1 for none.

    `latent_M` is in order.
    """
    usable = np.flatnonzero(usable_M)
    chosen = usable[some_of_each(latent_M[usable], most, random)]
    latent_C = latent_M[chosen]
    rank_C = np.arange(len(chosen)) - np.searchsorted(latent_C, latent_C)
    place_SP = np.full((count, most), -1, dtype=np.int64)
    place_SP[latent_C, rank_C] = chosen
    return place_SP


def auroc_rows(high_SP: np.ndarray, low_SX: np.ndarray) -> np.ndarray:
    """For each row the chance that one of `high` is above one of `low` (S,); equal ones count half.

    NaN entries are left out; NaN where a side has none.
    """
    found_S = np.full(len(high_SP), np.nan, dtype=np.float32)
    for start in range(0, len(high_SP), LATENTS_AT_ONCE):
        here = slice(start, start + LATENTS_AT_ONCE)
        high_RP1, low_R1X = high_SP[here, :, None], low_SX[here, None]
        above_R = (high_RP1 > low_R1X).sum((1, 2)) + 0.5 * (high_RP1 == low_R1X).sum((1, 2))
        pairs_R = np.isfinite(high_SP[here]).sum(1) * np.isfinite(low_SX[here]).sum(1)
        found_S[here] = np.where(pairs_R > 0, above_R / np.maximum(pairs_R, 1), np.nan)
    return found_S
