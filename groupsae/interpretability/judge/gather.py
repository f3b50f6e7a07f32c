"""The windows of a run's latents, read from held-out text in two passes: who fires how often, then the chosen ones.

Half of the documents give the windows for explanations, the other half those for scores, so that an explanation is
never tested on text that it was made from. Memory grows with the firings of the chosen latents, never with the width
of an SAE times the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from groupsae.activations.source import PositionSource
from groupsae.evaluation.sites import Site, by_suite, sites
from groupsae.interpretability.judge.firings import ChosenFirings, FiringCounts, Firings, firings_of
from groupsae.interpretability.judge.grid import EXPLAINING, SCORING, TokenTexts, WindowGrid
from groupsae.interpretability.judge.sampling import (
    Gathered,
    LatentWindows,
    draw_latents,
    match_latents,
    one_per_quantile,
    rng,
    with_values_of,
)
from groupsae.interpretability.judge.settings import Sampling
from groupsae.interpretability.window import Window
from groupsae.saes.suite import BoundSAE, Suite

Places = dict[str, dict[str, Site]]
"""The SAE that serves each layer of each suite."""


class _Batch(NamedTuple):
    fired: dict[Site, Firings]
    num_tokens: int


@torch.no_grad()
def gather_windows(
    suites: Mapping[str, Suite],
    source: PositionSource,
    ids_RT: np.ndarray,
    tokenizer: Any,
    sampling: Sampling,
    *,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Gathered:
    """Windows of latents that are drawn by seed in the first suite at each layer, and of their matches in the others.

    `ids_RT` are the source's rows. A latent can be judged if it fires in at least `scored` windows of each half, and
    is silent in as many of the half for scores. `progress` is called with tokens read; each is read twice.
    Raises TextError if no text is held out.
    """
    served = sites(suites)
    places = {
        suite: {layer: site for layer, site in layers.items() if layer in (sampling.layers or layers)}
        for suite, layers in by_suite(suites, {site: site for site in served}).items()
    }
    pairs = {site: served[site] for layers in places.values() for site in layers.values()}
    grid = WindowGrid.of(source, ids_RT, sampling)
    counts = {site: FiringCounts(bound.sae.d_sae) for site, bound in pairs.items()}
    for batch in _read(pairs, source, grid, progress):
        for site, found in batch.fired.items():
            counts[site].add(found, grid, batch.num_tokens)
    chosen = _choose(places, counts, grid, sampling)
    firings = {site: ChosenFirings(chosen[site], bound.sae.d_sae) for site, bound in pairs.items()}
    for batch in _read(pairs, source, grid, progress):
        for site, found in batch.fired.items():
            firings[site].add(found)
    windows = _WindowMaker(grid, TokenTexts(tokenizer), sampling)
    made = {
        site: [windows.of(site, latent, counts[site].rates_S[latent], firings[site]) for latent in chosen[site]]
        for site in pairs
    }
    return Gathered(tuple(_by_suite(places, made)), len(grid.rows) * source.row_tokens)


def _read(
    pairs: Mapping[Site, BoundSAE], source: PositionSource, grid: WindowGrid, progress: Callable[[int], None]
) -> Iterator[_Batch]:
    """All firings, a batch of rows at a time."""
    layers = {hookpoint: index for index, hookpoint in enumerate(source.hookpoints)}
    for first in range(0, len(grid.rows), source.batch_rows):
        rows = grid.rows[first : first + source.batch_rows]
        x_LBTD, out_BT = source.read_positions(rows)
        keep_BT = grid.keep(first, out_BT)
        fired = {
            site: firings_of(bound, x_LBTD[layers[site.hookpoint]], keep_BT, first, grid)
            for site, bound in pairs.items()
        }
        yield _Batch(fired, int(keep_BT.sum()))
        progress(out_BT.numel())


def _choose(
    places: Places, counts: Mapping[Site, FiringCounts], grid: WindowGrid, sampling: Sampling
) -> dict[Site, list[int]]:
    """The latents of each SAE at each layer that are judged: the first suite's at random, the others' like them."""
    chosen: dict[Site, list[int]] = {}
    first: dict[str, Site] = {}
    for served in places.values():
        for hookpoint, site in served.items():
            if site in chosen:
                continue
            eligible_S = counts[site].eligible_S(grid, sampling.scored)
            if hookpoint not in first:
                first[hookpoint] = site
                found = draw_latents(eligible_S, sampling.latents, rng(sampling.seed, "latents", hookpoint))
            else:
                rates_N = counts[first[hookpoint]].rates_S[chosen[first[hookpoint]]]
                random = rng(sampling.seed, "match", site.suite, hookpoint)
                found = match_latents(rates_N, counts[site].rates_S, eligible_S, random)
            chosen[site] = found[found >= 0].tolist()
    return chosen


class _WindowMaker:
    """Makes the windows of latents: their tokens as text, and which of them are shown."""

    def __init__(self, grid: WindowGrid, texts: TokenTexts, sampling: Sampling) -> None:
        self.grid, self.texts, self.sampling = grid, texts, sampling

    def of(self, site: Site, latent: int, rate: float, firings: ChosenFirings) -> LatentWindows:
        """The windows of one latent. The suite is that of the SAE."""
        windows_W, values_WT = firings.of(latent, self.grid.width)
        peaks_W, half_W = values_WT.max(1), self.grid.half_W[windows_W]
        random = rng(self.sampling.seed, "windows", site.hookpoint, latent)
        explaining, scoring = (np.flatnonzero(half_W == half) for half in (EXPLAINING, SCORING))
        top = explaining[np.argsort(-peaks_W[explaining], kind="stable")[: self.sampling.explained]]
        shown = scoring[one_per_quantile(peaks_W[scoring], self.sampling.scored, random)]
        explained = self._windows(windows_W[top], values_WT[top])
        active = self._windows(windows_W[shown], values_WT[shown])
        silent = np.setdiff1d(self.grid.of_half(SCORING), windows_W)
        others = random.choice(self.grid.of_half(EXPLAINING), len(explained), replace=False)
        inactive = random.choice(silent, len(active), replace=False)
        return LatentWindows(
            suite=site.suite,
            hookpoint=site.hookpoint,
            latent=latent,
            firing_rate=rate,
            explained=explained,
            unrelated=with_values_of(self._windows(others), explained),
            active=active,
            inactive=with_values_of(self._windows(inactive), active),
        )

    def _windows(self, numbers: Sequence[int], values_WT: np.ndarray | None = None) -> tuple[Window, ...]:
        if values_WT is None:
            values_WT = np.zeros((len(numbers), self.grid.width))
        pairs = zip(numbers, values_WT, strict=True)
        return tuple(Window(self.texts.of(self.grid.ids_of(int(n))), tuple(values.tolist())) for n, values in pairs)


def _by_suite(places: Places, made: Mapping[Site, Sequence[LatentWindows]]) -> Iterator[LatentWindows]:
    """Every suite's latents, also those that it shares with an earlier one."""
    for suite, served in places.items():
        for site in served.values():
            for one in made[site]:
                yield LatentWindows(**(vars(one) | {"suite": suite}))
