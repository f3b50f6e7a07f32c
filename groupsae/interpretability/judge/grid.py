"""Rows of tokens cut into windows: which of them can be used, for what, and their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.source import PositionSource
from groupsae.evaluation.masks import chosen_rows, row_clusters
from groupsae.interpretability.judge.sampling import rng
from groupsae.interpretability.judge.settings import Sampling

EXPLAINING, SCORING = 0, 1
"""The two halves of the text."""
SPACE = "\u2581"
"""How SentencePiece writes a space before a word, which decoding a single token loses."""


@dataclass
class WindowGrid:
    """The windows of R rows, numbered row by row: `per_row` of `width` tokens each; what is left of a row is not used.

    ids_RT    the rows' tokens                   rows   the rows' numbers in their source
    half_W    EXPLAINING or SCORING: rows of one document are in the same half
    usable_W  false for windows whose tokens an earlier one has, and, once they were read, for those that mostly
              hold positions that are left out
    """

    rows: Sequence[int]
    ids_RT: np.ndarray
    width: int
    half_W: np.ndarray
    usable_W: np.ndarray

    @classmethod
    def of(cls, source: PositionSource, ids_RT: np.ndarray, sampling: Sampling) -> WindowGrid:
        """The windows of held-out rows in random order. Raises TextError if there is no row."""
        rows = chosen_rows(source, sampling.num_tokens, sampling.seed)
        ids_RT = ids_RT[rows.numpy()]
        width = min(sampling.window_tokens, ids_RT.shape[1])
        per_row = ids_RT.shape[1] // width
        ids_WT = ids_RT[:, : per_row * width].reshape(-1, width)
        usable_W = np.zeros(len(ids_WT), dtype=bool)
        usable_W[np.unique(ids_WT, axis=0, return_index=True)[1]] = True
        half_R = _halves(row_clusters(source, rows), sampling.seed)
        return cls(rows.tolist(), ids_RT, width, np.repeat(half_R, per_row), usable_W)

    @property
    def per_row(self) -> int:
        """Windows of one row."""
        return len(self.half_W) // len(self.rows)

    def of_half(self, half: int) -> np.ndarray:
        """The numbers of the windows of a half that can be used."""
        return np.flatnonzero(self.usable_W & (self.half_W == half))

    def keep(self, first: int, out_BT: Tensor) -> Tensor:
        """keep_BT: positions that count in the rows from place `first` on; windows with too few are given up."""
        batch = len(out_BT)
        used = self.per_row * self.width
        kept_BWT = ~out_BT[:, :used].reshape(batch, self.per_row, self.width)
        windows = slice(first * self.per_row, (first + batch) * self.per_row)
        self.usable_W[windows] &= (2 * kept_BWT.sum(2) >= self.width).flatten().cpu().numpy()
        usable_BW = torch.from_numpy(self.usable_W[windows]).to(out_BT.device).reshape(batch, self.per_row, 1)
        keep_BT = torch.zeros_like(out_BT)
        keep_BT[:, :used] = (kept_BWT & usable_BW).flatten(1)
        return keep_BT

    def ids_of(self, window: int) -> list[int]:
        """The tokens of a window."""
        row, place = divmod(window, self.per_row)
        return self.ids_RT[row, place * self.width : (place + 1) * self.width].tolist()


class TokenTexts:
    """The text of single tokens, each decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The texts of some tokens; a part of a character is the replacement character."""
        for token in set(ids) - self._known.keys():
            self._known[token] = self._decoded(token)
        return tuple(self._known[token] for token in ids)

    def _decoded(self, token: int) -> str:
        piece, text = self._tokenizer.convert_ids_to_tokens(token), self._tokenizer.decode([token])
        return f" {text}" if str(piece).startswith(SPACE) and not text.startswith(" ") else text


def _halves(clusters_R: np.ndarray, seed: int) -> np.ndarray:
    """EXPLAINING or SCORING for each row: by cluster, or by row where there is only one cluster."""
    if len(np.unique(clusters_R)) < 2:
        clusters_R = np.arange(len(clusters_R))
    names, which_R = np.unique(clusters_R, return_inverse=True)
    return (rng(seed, "halves").permutation(len(names)) % 2)[which_R]
