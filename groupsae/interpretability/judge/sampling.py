"""Which latents are judged, and on which of their windows: by seed, and by firing rate where suites are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from groupsae.interpretability.window import Window
from groupsae.storage import digest


@dataclass(frozen=True)
class LatentWindows:
    """A latent of a suite's SAE at one layer, and the windows that it is judged by.

    explained  windows of the documents for explanations on which it fires, the strongest first
    unrelated  windows at random from the same documents, with the values of `explained` in place of their own
    active     windows of the other documents on which it fires, one from each quantile of their peaks
    inactive   windows of those documents on which it does not fire; their values are those of `active`, so that the
               tokens which they mark are as many, and at the same places
    """

    suite: str
    hookpoint: str
    latent: int
    firing_rate: float
    explained: tuple[Window, ...]
    unrelated: tuple[Window, ...]
    active: tuple[Window, ...]
    inactive: tuple[Window, ...]


@dataclass(frozen=True)
class Gathered:
    """The latents that can be judged, suite by suite and layer by layer, and the held-out tokens that were read."""

    latents: tuple[LatentWindows, ...]
    num_tokens: int


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers of their own for one choice, a function of the seed and the choice's name."""
    return np.random.default_rng(int(digest([seed, *names]), 16))


def draw_latents(eligible_S: np.ndarray, latents: int, random: np.random.Generator) -> np.ndarray:
    """Numbers of latents drawn at random from those that are eligible, all of them where there are not as many."""
    found = np.flatnonzero(eligible_S)
    return np.sort(random.permutation(found)[:latents])


def match_latents(
    rates_N: np.ndarray, rates_S: np.ndarray, eligible_S: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """For each of N firing rates another suite's latent with one like it: numbers (N,), all different, or -1.

    The sum of |log rate - log rate'| is as small as it can be; equals are chosen between at random. -1 stands
    where the other suite has fewer eligible latents.
    """
    candidates = random.permutation(np.flatnonzero(eligible_S))
    matched_N = np.full(len(rates_N), -1)
    if len(candidates) and len(rates_N):
        distance_NC = np.abs(np.log(rates_N)[:, None] - np.log(rates_S[candidates])[None])
        rows, columns = linear_sum_assignment(distance_NC)
        matched_N[rows] = candidates[columns]
    return matched_N


def one_per_quantile(peaks_N: np.ndarray, quantiles: int, random: np.random.Generator) -> np.ndarray:
    """One place at random from each of so many equal parts of N >= quantiles peaks in order, the weakest first."""
    ordered_N = np.argsort(peaks_N, kind="stable")
    edges = np.arange(quantiles + 1) * len(peaks_N) // quantiles
    return ordered_N[random.integers(edges[:-1], edges[1:])]


def with_values_of(windows: Sequence[Window], others: Sequence[Window]) -> tuple[Window, ...]:
    """The tokens of some windows with the values of others, in turn."""
    return tuple(Window(one.tokens, others[i % len(others)].values) for i, one in enumerate(windows))
