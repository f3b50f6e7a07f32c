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

from groupsae.interpretability.auroc import auroc_rows, sample_rows
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
    scored = np.flatnonzero((fitted_S >= MIN_FIRINGS) & (tried_S >= MIN_FIRINGS))
    found = np.full((2, firings.count), np.nan, dtype=np.float32)
    silent_X = random.permutation(np.flatnonzero(surface.tries_N))[:SILENT_TOKENS]
    place_SP = sample_rows(firings.latent_M, tries_M, firings.count, MOST_FIRINGS, random)[scored]
    fires_SX = holds(_keys(firings, surface), scored[:, None] * len(surface.fits_N) + silent_X)
    position_SE = np.concatenate([firings.position_M[place_SP], np.broadcast_to(silent_X, fires_SX.shape)], axis=1)
    left_out_SE = np.concatenate([place_SP < 0, fires_SX], axis=1)
    score_SE = np.where(left_out_SE, np.nan, 0.0)
    for feature, value_N in enumerate(surface.value_FN):
        score_SE += _Weights(firings, fits_M, fitted_S, value_N, surface.fits_N).of(scored, position_SE)
        if feature in (0, len(surface.value_FN) - 1):
            found[int(feature > 0), scored] = auroc_rows(score_SE[:, :MOST_FIRINGS], score_SE[:, MOST_FIRINGS:])
    return found[0], found[1]


def _keys(firings: Firings, surface: Surface) -> np.ndarray:
    """A number for each latent and position at which it fires, in order."""
    return firings.latent_M.astype(np.int64) * len(surface.fits_N) + firings.position_M


class _Weights:
    """What each value of one feature says for each latent: the logarithm in the formula above."""

    def __init__(
        self, firings: Firings, fits_M: np.ndarray, fitted_S: np.ndarray, value_N: np.ndarray, fits_N: np.ndarray
    ) -> None:
        self._number, self._fitted_S, self._value_N = int(value_N.max(initial=0)) + 1, fitted_S, value_N
        base_X = np.bincount(value_N[fits_N], minlength=self._number) + 1.0
        self._share_X = base_X / base_X.sum()
        latent_M, position_M = firings.latent_M[fits_M], firings.position_M[fits_M]
        key_M = latent_M.astype(np.int64) * self._number + value_N[position_M]
        self._key_U, self._count_U = np.unique(key_M, return_counts=True)

    def of(self, latent_S: np.ndarray, position_SE: np.ndarray) -> np.ndarray:
        """Those of some latents at some positions (S, E)."""
        value_SE = self._value_N[position_SE]
        if not len(self._key_U):
            return np.zeros(value_SE.shape)
        key_SE = latent_S[:, None] * self._number + value_SE
        place_SE = np.minimum(np.searchsorted(self._key_U, key_SE), len(self._key_U) - 1)
        count_SE = np.where(self._key_U[place_SE] == key_SE, self._count_U[place_SE], 0)
        share_SE, n_S1 = self._share_X[value_SE], self._fitted_S[latent_S][:, None]
        return np.log((count_SE + PRIOR * share_SE) / ((n_S1 + PRIOR) * share_SE))
