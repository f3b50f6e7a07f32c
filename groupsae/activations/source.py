"""Where activations come from: anything that reads rows and gives x_LND.

The pipeline sees only this: hookpoints, a width, and rows that can be read in any order and as
often as one likes. `Harvester` reads a language model; `SyntheticSource` makes activations with
a known structure, for tests.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from groupsae.errors import TextError


class ActivationSource(Protocol):
    """Rows of tokens, read as activations at several hookpoints at once."""

    hookpoints: tuple[str, ...]
    d_model: int
    num_rows: int
    row_tokens: int
    """Most tokens that one row gives."""
    batch_rows: int
    """Rows that are read at once."""
    device: torch.device
    num_masked: int
    """Positions that reads have left out because their activations are not finite."""

    def read(self, rows: Sequence[int]) -> Tensor:
        """The activations x_LND of these rows' tokens, in the order of the rows.

        L follows `hookpoints`. N is at most `len(rows) * row_tokens`: positions that are left
        out (special tokens) are not in it. Raises NumericalError for NaN or infinity.
        """
        ...

    def narrowed(self, hookpoints: tuple[str, ...]) -> ActivationSource:
        """The same source at some of its hookpoints only; what lies above the deepest is not computed.

        It may stay at more of them, where its tokens would not be the same.
        """
        ...


class PositionSource(ActivationSource, Protocol):
    """A source whose rows and positions can be told apart, which evaluation needs."""

    skip_special: bool
    """Whether `read` leaves out positions that hold a special token."""

    def read_positions(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The activations x_LBTD at every position of these rows, and special_BT, true at special tokens.

        Raises NumericalError for NaN or infinity.
        """
        ...


def row_order(num_rows: int, seed: int, epoch: int) -> Tensor:
    """The order in which rows are read in an epoch: a permutation, decided by its arguments alone."""
    random = torch.Generator().manual_seed(hash_seed(seed, "rows", epoch))
    return torch.randperm(num_rows, generator=random)


def stream(source: ActivationSource, num_tokens: int, seed: int) -> Iterator[Tensor]:
    """Activations x_LND of `num_tokens` tokens of rows in random order, a batch of rows at a time.

    The same arguments give the same tokens. Ends early if all rows together hold fewer. Raises
    TextError if there are no rows.
    """
    require_rows(source)
    left = num_tokens
    for rows in row_order(source.num_rows, seed, 0).split(source.batch_rows):
        x_LND = source.read(rows.tolist())[:, :left]
        left -= x_LND.shape[1]
        if x_LND.shape[1]:
            yield x_LND
        if left <= 0:
            return


def stream_by_row(source: ActivationSource, num_tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What `stream` gives, x_LND, each time with the row of each token (N,), on the CPU."""
    require_rows(source)
    left = num_tokens
    for rows in row_order(source.num_rows, seed, 0).split(source.batch_rows):
        x_LND, count_B = read_by_row(source, rows.tolist())
        x_LND, row_N = x_LND[:, :left], rows.repeat_interleave(count_B)[:left]
        left -= x_LND.shape[1]
        if x_LND.shape[1]:
            yield x_LND, row_N
        if left <= 0:
            return


def read_by_row(source: ActivationSource, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The activations x_LND of these rows, and how many tokens each of them gave (B,).

    A source with a method of this name does it in one read; others are read row by row where a row gives fewer tokens
    than it has.
    """
    own = getattr(source, "read_by_row", None)
    if own is not None:
        return own(rows)
    x_LND = source.read(rows)
    if x_LND.shape[1] == len(rows) * source.row_tokens:
        return x_LND, torch.full((len(rows),), source.row_tokens)
    parts = [source.read([row]) for row in rows]
    return torch.cat(parts, dim=1), torch.tensor([part.shape[1] for part in parts])


def row_clusters(source: ActivationSource, rows: Tensor) -> np.ndarray:
    """The cluster of each of these rows (R,), numbered from 0: rows of one document are in one.

    Each row is a cluster of its own where the source knows no documents.
    """
    text: Any = getattr(source, "rows", None)
    if not hasattr(text, "document_of_row"):
        return np.arange(len(rows))
    return np.unique(text.document_of_row()[rows.numpy()], return_inverse=True)[1]


def require_rows(source: ActivationSource) -> None:
    """Raises TextError for a source without rows."""
    if not source.num_rows:
        raise TextError("There are no rows of tokens to read activations of; give some text.")


def hash_seed(seed: int, what: str, step: int = 0) -> int:
    """A seed for one random choice, a function of (seed, what, step): nothing hidden to restore."""
    digest = hashlib.sha256(f"{seed}/{what}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class SyntheticSource:
    """Activations with a known structure: layers drift apart, tokens are sparse mixtures of shared directions.

    Layer l reads `scale_l * (directions rotated a little further at each layer) + mean_l`, so that
    near layers are alike and far ones are not. For tests and examples; needs no language model.
    """

    def __init__(
        self,
        num_layers: int = 4,
        d_model: int = 16,
        num_rows: int = 256,
        row_tokens: int = 32,
        *,
        active: int = 4,
        drift: float = 0.3,
        seed: int = 0,
    ) -> None:
        self.hookpoints = tuple(f"layers.{layer}" for layer in range(num_layers))
        self.d_model, self.num_rows, self.row_tokens, self.batch_rows = d_model, num_rows, row_tokens, 8
        self.device, self.skip_special, self.num_masked = torch.device("cpu"), False, 0
        self._seed, self._active = seed, active
        random = torch.Generator().manual_seed(hash_seed(seed, "directions"))
        directions = [torch.randn(4 * d_model, d_model, generator=random)]
        for _ in range(num_layers - 1):
            directions.append(directions[-1] + drift * torch.randn(directions[0].shape, generator=random))
        self._directions_LFD = torch.nn.functional.normalize(torch.stack(directions), dim=-1)
        self._scale_L = torch.linspace(1, 3, num_layers)
        self._mean_LD = torch.randn(num_layers, d_model, generator=random)

    def read(self, rows: Sequence[int]) -> Tensor:
        """The activations x_LND of these rows."""
        return torch.cat([self._read_row(row) for row in rows], dim=1)

    def read_positions(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same as x_LBTD, and special_BT; no position is special."""
        x_LND = self.read(rows)
        shape = (len(rows), self.row_tokens)
        return x_LND.reshape(len(x_LND), *shape, self.d_model), torch.zeros(shape, dtype=torch.bool)

    def narrowed(self, hookpoints: tuple[str, ...]) -> SyntheticSource:
        """The same at some of its hookpoints."""
        layers = [self.hookpoints.index(name) for name in hookpoints]
        narrow = copy.copy(self)
        narrow.hookpoints = hookpoints
        for name in ("_directions_LFD", "_scale_L", "_mean_LD"):
            setattr(narrow, name, getattr(self, name)[layers])
        return narrow

    def _read_row(self, row: int) -> Tensor:
        random = torch.Generator().manual_seed(hash_seed(self._seed, "row", row))
        latents_NF = torch.zeros(self.row_tokens, self._directions_LFD.shape[1])
        chosen_NK = torch.rand(latents_NF.shape, generator=random).topk(self._active).indices
        latents_NF.scatter_(1, chosen_NK, torch.rand(chosen_NK.shape, generator=random) + 0.5)
        # One product per layer: what a layer reads must not depend on which others are read with it.
        x_LND = torch.stack([latents_NF @ directions_FD for directions_FD in self._directions_LFD])
        return self._scale_L[:, None, None] * x_LND + self._mean_LD[:, None]
