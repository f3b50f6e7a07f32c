"""How well the surface of a text tells where a latent fires: its token, the two before it, the place in the row.

A naive Bayes classifier per latent, in closed form, is fitted on one half of the documents and tried on the other:

    score(p) = sum over features f of ln[(c_f(x) + a q_f(x)) / ((n + a) q_f(x))]        x = the feature's value at p

c_f(x) of a latent's n firings in the first half have value x; q_f(x) is the share of all tokens that have it; a = 64
weighs the second against the first. AUROC is the chance that a firing of the other half scores higher than a token
there on which the latent is silent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from groupsae.interpretability.firings import Firings
from groupsae.interpretability.selection import holds

PRIOR = 64.0
MIN_FIRINGS = 8
"""Firings that each half must hold for a latent to be scored."""
MOST_FIRINGS, SILENT_TOKENS = 64, 512
"""Firings per latent, and tokens in all, that AUROC is counted on."""


@dataclass(frozen=True)
class Surface:
    """The features of every position of some text, and which half it is in.

    value_FN   the value of each feature, counted from 0: token, the one before, the one before that, place in the row
    fits_N     true where a position counts and is in the half for fitting; tries_N in the half for trying
    """

    value_FN: np.ndarray
    fits_N: np.ndarray
    tries_N: np.ndarray

    @classmethod
    def of(cls, ids_RT: np.ndarray, kept_RT: np.ndarray, cluster_R: np.ndarray) -> Surface:
        """The features of rows of tokens; documents are in the two halves in turn."""
        number = int(ids_RT.max(initial=0)) + 1
        before_RT, earlier_RT = (_shifted(ids_RT, by, fill=number) for by in (1, 2))
        place_RT = np.broadcast_to(np.log2(np.arange(ids_RT.shape[1]) + 1).astype(int), ids_RT.shape)
        half_R = np.unique(cluster_R, return_inverse=True)[1] % 2
        if not half_R.any():
            half_R = np.arange(len(half_R)) % 2
        fits_RT, tries_RT = (kept_RT & (half_R == half)[:, None] for half in (0, 1))
        features = [part.reshape(-1).astype(np.int64) for part in (ids_RT, before_RT, earlier_RT, place_RT)]
        return cls(np.stack(features), fits_RT.reshape(-1), tries_RT.reshape(-1))


def _shifted(ids_RT: np.ndarray, by: int, fill: int) -> np.ndarray:
    shifted_RT = np.full(ids_RT.shape, fill, dtype=np.int64)
    shifted_RT[:, by:] = ids_RT[:, :-by]
    return shifted_RT


def surface_scores(firings: Firings, surface: Surface, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """AUROC (S,) by the token alone, and by all features; NaN where a half holds too few firings."""
    fits_M, tries_M = surface.fits_N[firings.position_M], surface.tries_N[firings.position_M]
    fitted_S = np.bincount(firings.latent_M[fits_M], minlength=firings.count)
    tried_S = np.bincount(firings.latent_M[tries_M], minlength=firings.count)
    scored_S = (fitted_S >= MIN_FIRINGS) & (tried_S >= MIN_FIRINGS)
    silent_X = np.flatnonzero(surface.tries_N)
    silent_X = np.sort(random.permutation(silent_X)[:SILENT_TOKENS])
    token_S, all_S = np.full(firings.count, np.nan), np.full(firings.count, np.nan)
    weights = [_Weights(firings, fits_M, fitted_S, value_N, surface.fits_N) for value_N in surface.value_FN]
    for latent in np.flatnonzero(scored_S):
        begin, end = firings.start[latent], firings.start[latent + 1]
        position_P = firings.position_M[begin:end]
        rest_X = silent_X[~holds(position_P, silent_X)]
        position_P = position_P[surface.tries_N[position_P]]
        if len(position_P) > MOST_FIRINGS:
            position_P = random.choice(position_P, MOST_FIRINGS, replace=False)
        if not len(rest_X):
            continue
        both = np.concatenate([position_P, rest_X])
        score_FE = np.stack([one.of(latent, both) for one in weights])
        token_S[latent] = auroc(score_FE[0], len(position_P))
        all_S[latent] = auroc(score_FE.sum(0), len(position_P))
    return token_S.astype(np.float32), all_S.astype(np.float32)


class _Weights:
    """What each value of one feature says for each latent: the logarithm in the formula above."""

    def __init__(
        self, firings: Firings, fits_M: np.ndarray, fitted_S: np.ndarray, value_N: np.ndarray, fits_N: np.ndarray
    ) -> None:
        self.number, self._fitted_S, self._value_N = int(value_N.max(initial=0)) + 1, fitted_S, value_N
        base_X = np.bincount(value_N[fits_N], minlength=self.number) + 1.0
        self._share_X = base_X / base_X.sum()
        latent_M, position_M = firings.latent_M[fits_M], firings.position_M[fits_M]
        key_M = latent_M.astype(np.int64) * self.number + value_N[position_M]
        self._key_U, self._count_U = np.unique(key_M, return_counts=True)
        self._start_S = np.searchsorted(self._key_U, np.arange(firings.count + 1) * self.number)

    def of(self, latent: int, position_E: np.ndarray) -> np.ndarray:
        value_E = self._value_N[position_E]
        begin, end = self._start_S[latent], self._start_S[latent + 1]
        share_E, n = self._share_X[value_E], self._fitted_S[latent]
        count_E = np.zeros(len(value_E))
        if end > begin:
            key_U = self._key_U[begin:end] - latent * self.number
            place_E = np.minimum(np.searchsorted(key_U, value_E), end - begin - 1)
            count_E = np.where(key_U[place_E] == value_E, self._count_U[begin:end][place_E], 0)
        return np.log((count_E + PRIOR * share_E) / ((n + PRIOR) * share_E))


def auroc(score_E: np.ndarray, positives: int) -> float:
    """The chance that one of the first `positives` scores is above one of the others; equal ones count half."""
    high_E, low_E = score_E[:positives], np.sort(score_E[positives:])
    below = np.searchsorted(low_E, high_E, "left") + np.searchsorted(low_E, high_E, "right")
    return float(below.mean() / (2 * len(low_E)))
