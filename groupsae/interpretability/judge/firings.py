"""Where latents fire, by window: how often each does, and all firings of a few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from groupsae.interpretability.judge.grid import EXPLAINING, SCORING, WindowGrid
from groupsae.saes.suite import BoundSAE


class Firings(NamedTuple):
    """Firings F in a batch of rows: the window, the position in it, the latent and its value."""

    window_F: np.ndarray
    position_F: np.ndarray
    latent_F: np.ndarray
    value_F: np.ndarray


def firings_of(bound: BoundSAE, x_BTD: Tensor, keep_BT: Tensor, first: int, grid: WindowGrid) -> Firings:
    """All firings of an SAE on the rows from place `first` on, at positions that count."""
    row_N, position_N = keep_BT.nonzero(as_tuple=True)
    latents = bound.encode_sparse(x_BTD[row_N, position_N].float())
    token_F, slot_F = (latents.values_NK > 0).nonzero(as_tuple=True)
    position_F = position_N[token_F]
    window_F = (first + row_N[token_F]) * grid.per_row + position_F.div(grid.width, rounding_mode="floor")
    parts = (window_F, position_F % grid.width, latents.indices_NK[token_F, slot_F], latents.values_NK[token_F, slot_F])
    return Firings(*(part.cpu().numpy() for part in parts))


class FiringCounts:
    """How many tokens, and how many windows of each half, each latent fires on. Windows come in one batch each."""

    def __init__(self, d_sae: int) -> None:
        self.num_tokens, self.tokens_S = 0, np.zeros(d_sae, dtype=np.int64)
        self.windows_2S = np.zeros((2, d_sae), dtype=np.int64)

    def add(self, found: Firings, grid: WindowGrid, num_tokens: int) -> None:
        """Count the firings of a batch of so many tokens."""
        d_sae = len(self.tokens_S)
        self.num_tokens += num_tokens
        self.tokens_S += np.bincount(found.latent_F, minlength=d_sae)
        pairs = np.unique(found.window_F.astype(np.int64) * d_sae + found.latent_F)
        half, latent = grid.half_W[pairs // d_sae], pairs % d_sae
        for one in (EXPLAINING, SCORING):
            self.windows_2S[one] += np.bincount(latent[half == one], minlength=d_sae)

    @property
    def rates_S(self) -> np.ndarray:
        """The share of tokens on which each latent fires."""
        return self.tokens_S / max(1, self.num_tokens)

    def eligible_S(self, grid: WindowGrid, scored: int) -> np.ndarray:
        """Latents with enough windows: active ones of both halves, and silent ones of the half for scores."""
        silent_S = len(grid.of_half(SCORING)) - self.windows_2S[SCORING]
        return (self.windows_2S >= scored).all(0) & (silent_S >= scored)


class ChosenFirings:
    """The values of some latents in all windows in which they fire."""

    def __init__(self, latents: Sequence[int], d_sae: int) -> None:
        self._slot_S = np.full(d_sae, -1)
        self._slot_S[list(latents)] = np.arange(len(latents))
        self._parts: list[Firings] = []

    def add(self, found: Firings) -> None:
        """Keep the chosen latents' firings of a batch."""
        chosen_F = self._slot_S[found.latent_F] >= 0
        self._parts.append(Firings(*(part[chosen_F] for part in found)))

    def of(self, latent: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows (W,) in which a latent fires, and its values there (W, width)."""
        mine = [Firings(*(part[one.latent_F == latent] for part in one)) for one in self._parts]
        window_F, position_F, value_F = (
            np.concatenate([getattr(one, name) for one in mine]) if mine else np.zeros(0, dtype=np.int64)
            for name in ("window_F", "position_F", "value_F")
        )
        windows_W, place_F = np.unique(window_F, return_inverse=True)
        values_WT = np.zeros((len(windows_W), width))
        values_WT[place_F, position_F] = value_F
        return windows_W, values_WT
