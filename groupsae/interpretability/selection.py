"""Which windows of text show what a latent does: its strongest, some from each quantile, some where it is silent.

Each row is cut into cells of the window's length; a cell counts by the largest value in it, so that two windows
show two places. The window itself lies around the peak, with three quarters of it before. All latents of a shard are
worked on at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from groupsae.interpretability.firings import Firings

BEFORE_PEAK = 0.75
"""Share of a window that lies before the peak, where the row allows it."""
NOT_TOP, NOT_SAMPLED = 255, 255


@dataclass(frozen=True)
class Windows:
    """Windows on which latents fire, by latent and then from the strongest on, and windows on which they are silent.

    latent_W   the latent        row_W, first_W  the row, and the first token in it
    rank_W     place among the strongest, from 0; 255 for a window that is only sampled
    quantile_W the quantile it was sampled from, 0 being the weakest; 255 for a window that is only strong
    start_W    where each window's values begin in offset_V and value_V (W + 1)
    offset_V, value_V  the place in the window of each firing, and its value
    silent_latent, silent_row, silent_first  windows without a firing
    """

    latent_W: np.ndarray
    row_W: np.ndarray
    first_W: np.ndarray
    rank_W: np.ndarray
    quantile_W: np.ndarray
    start_W: np.ndarray
    offset_V: np.ndarray
    value_V: np.ndarray
    silent_latent: np.ndarray
    silent_row: np.ndarray
    silent_first: np.ndarray


@dataclass(frozen=True)
class WindowRule:
    """How many windows are kept, and of which length."""

    length: int
    top: int
    quantiles: int
    per_quantile: int
    silent: int


@dataclass(frozen=True)
class _Cells:
    """The cells in which each latent fires: the latent, the cell, the position of the peak, and its value."""

    latent_C: np.ndarray
    key_C: np.ndarray
    peak_C: np.ndarray
    value_C: np.ndarray


def choose_windows(firings: Firings, kept_RT: np.ndarray, rule: WindowRule, random: np.random.Generator) -> Windows:
    """The windows of every latent of a shard; those that never fire have none but silent ones."""
    row_tokens = kept_RT.shape[1]
    cells = _cells(firings, row_tokens, rule.length, len(kept_RT))
    chosen_C, rank_C, quantile_C = _chosen(cells, firings.count, rule, random)
    latent_W, peak_W = cells.latent_C[chosen_C], cells.peak_C[chosen_C]
    row_W = peak_W // row_tokens
    before = int(rule.length * BEFORE_PEAK)
    first_W = np.clip(peak_W % row_tokens - before, 0, row_tokens - rule.length)
    start_W, offset_V, value_V = _values(firings, latent_W, row_W * row_tokens + first_W, rule.length, kept_RT.size)
    silent = _silent(firings.count, cells, kept_RT, rule, random)
    return Windows(latent_W, row_W, first_W, rank_C, quantile_C, start_W, offset_V, value_V, *silent)


def _cells(firings: Firings, row_tokens: int, length: int, num_rows: int) -> _Cells:
    per_row = -(-row_tokens // length)
    cell_M = firings.position_M // row_tokens * per_row + firings.position_M % row_tokens // length
    key_M = firings.latent_M.astype(np.int64) * (num_rows * per_row) + cell_M
    if not len(key_M):
        none = np.zeros(0, dtype=np.int64)
        return _Cells(none, none, none, np.zeros(0, dtype=np.float32))
    start_C = np.flatnonzero(np.concatenate([[True], key_M[1:] != key_M[:-1]]))
    value_C = np.maximum.reduceat(firings.value_M, start_C)
    of_M = np.repeat(np.arange(len(start_C)), np.diff(np.concatenate([start_C, [len(key_M)]])))
    place_M = np.where(firings.value_M == value_C[of_M], np.arange(len(key_M)), len(key_M))
    peak_C = firings.position_M[np.minimum.reduceat(place_M, start_C)]
    return _Cells(firings.latent_M[start_C], key_M[start_C], peak_C, value_C)


def _chosen(cells: _Cells, count: int, rule: WindowRule, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The chosen cells by latent and rank, their ranks among the strongest, and the quantiles they stand for."""
    order_C = np.lexsort((-cells.value_C, cells.latent_C))
    latent_C = cells.latent_C[order_C]
    per_latent_S = np.bincount(latent_C, minlength=count)
    start_S = np.concatenate([[0], np.cumsum(per_latent_S)])[:-1]
    rank_C = np.arange(len(latent_C)) - start_S[latent_C]
    quantile_C = rule.quantiles - 1 - rank_C * rule.quantiles // np.maximum(per_latent_S[latent_C], 1)
    sampled_C = some_of_each(latent_C * rule.quantiles + quantile_C, rule.per_quantile, random)
    top_C = rank_C < rule.top
    keep_C = top_C | sampled_C
    rank_C = np.where(top_C, rank_C, NOT_TOP).astype(np.uint8)
    quantile_C = np.where(sampled_C, quantile_C, NOT_SAMPLED).astype(np.uint8)
    return order_C[keep_C], rank_C[keep_C], quantile_C[keep_C]


def some_of_each(part_N: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """True for at most so many members of each part, drawn at random."""
    order_N = np.argsort(part_N + random.random(len(part_N)))  # by part, in random order within
    ordered_N = part_N[order_N]
    new_N = np.concatenate([[True], ordered_N[1:] != ordered_N[:-1]]) if len(part_N) else np.zeros(0, dtype=bool)
    start_N = np.maximum.accumulate(np.where(new_N, np.arange(len(part_N)), 0))
    chosen_N = np.zeros(len(part_N), dtype=bool)
    chosen_N[order_N] = np.arange(len(part_N)) - start_N < most
    return chosen_N


def _values(
    firings: Firings, latent_W: np.ndarray, position_W: np.ndarray, length: int, num_positions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every firing inside each window: where they begin, their places in it, and their values."""
    key_M = firings.latent_M.astype(np.int64) * num_positions + firings.position_M
    low_W = latent_W.astype(np.int64) * num_positions + position_W
    begin_W, end_W = np.searchsorted(key_M, low_W), np.searchsorted(key_M, low_W + length)
    start_W = np.concatenate([[0], np.cumsum(end_W - begin_W)])
    which_V = np.repeat(np.arange(len(latent_W)), end_W - begin_W)
    place_V = begin_W[which_V] + np.arange(start_W[-1]) - start_W[which_V]
    return start_W, firings.position_M[place_V] - position_W[which_V], firings.value_M[place_V]


def _silent(
    count: int, cells: _Cells, kept_RT: np.ndarray, rule: WindowRule, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows in which a latent does not fire though positions count there: latents, rows, first tokens."""
    num_rows, row_tokens = kept_RT.shape
    per_row = -(-row_tokens // rule.length)
    whole = row_tokens // rule.length
    draws = 4 * rule.silent
    row_SX, cell_SX = random.integers(0, num_rows, (count, draws)), random.integers(0, whole, (count, draws))
    key_SX = np.arange(count)[:, None] * (num_rows * per_row) + row_SX * per_row + cell_SX
    counts_RC = kept_RT[:, : whole * rule.length].reshape(num_rows, whole, rule.length).any(-1)
    fits_SX = ~holds(cells.key_C, key_SX) & counts_RC[row_SX, cell_SX]
    fits_SX &= _first_of_each(key_SX)
    fits_SX &= np.cumsum(fits_SX, axis=1) <= rule.silent
    latent, draw = np.nonzero(fits_SX)
    return latent, row_SX[latent, draw], cell_SX[latent, draw] * rule.length


def holds(sorted_N: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each wanted number is among sorted ones."""
    if not len(sorted_N):
        return np.zeros(wanted.shape, dtype=bool)
    place = np.minimum(np.searchsorted(sorted_N, wanted), len(sorted_N) - 1)
    return sorted_N[place] == wanted


def _first_of_each(key_SX: np.ndarray) -> np.ndarray:
    """True where a number has not stood before in its row."""
    order_SX = np.argsort(key_SX, axis=1, kind="stable")
    ordered_SX = np.take_along_axis(key_SX, order_SX, 1)
    new_SX = np.ones(key_SX.shape, dtype=bool)
    new_SX[:, 1:] = ordered_SX[:, 1:] != ordered_SX[:, :-1]
    first_SX = np.zeros(key_SX.shape, dtype=bool)
    np.put_along_axis(first_SX, order_SX, new_SX, 1)
    return first_SX
