"""Where every latent fires, and how strongly: read from text once, kept on disk by latent.

The text is read in chunks of rows. A chunk's file holds, for each site, the firings sorted by latent and then by
position, and where each latent's begin. So the firings of a few latents over the whole text can be read without the
others, and memory does not grow with the text nor with the width of the SAEs. A chunk that is on disk is not read
again.

Positions count through the rows that are read, one after the other: position p is token p % T of row p // T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from groupsae.activations.source import PositionSource
from groupsae.errors import RunError
from groupsae.evaluation.sites import Site
from groupsae.saes.suite import BoundSAE
from groupsae.storage import write_atomically

FIRINGS_PER_CHUNK = 4 * 2**20
"""Firings of all sites together that are held before a chunk is written: 12 bytes each."""


@dataclass(frozen=True)
class Firings:
    """The firings of `count` latents at one site, sorted by latent and then by position; latents count from 0."""

    count: int
    latent_M: np.ndarray
    position_M: np.ndarray
    value_M: np.ndarray

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each latent fires (S,)."""
        return np.bincount(self.latent_M, minlength=self.count)

    @cached_property
    def start(self) -> np.ndarray:
        """Where each latent's firings begin, and the last one's end (S + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def first(self, most: int) -> Firings:
        """Those at positions below `most`."""
        keep_M = self.position_M < most
        return Firings(self.count, self.latent_M[keep_M], self.position_M[keep_M], self.value_M[keep_M])


@torch.no_grad()
def write_firings(
    pairs: Mapping[Site, BoundSAE],
    source: PositionSource,
    rows: Sequence[int],
    folder: Path,
    key: str,
    progress: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Read rows and write the firings of every site into chunk files; chunks of this key that exist are kept.

    `progress` is called with the positions of rows that are done. Positions that a source leaves out count nowhere.
    """
    layers = {hookpoint: index for index, hookpoint in enumerate(source.hookpoints)}
    place = {site: (layers[site.hookpoint], bound) for site, bound in pairs.items()}
    start = 0
    for first, end in _done_chunks(folder, key):
        if first == start:
            progress((end - first) * source.row_tokens)
            start = end
    chunk = _Chunk(len(pairs), start)
    for low in range(start, len(rows), source.batch_rows):
        batch = rows[low : low + source.batch_rows]
        x_LBTD, out_BT = source.read_positions(list(batch))
        kept_N = (~out_BT).flatten().nonzero().squeeze(1)
        position_N = (kept_N + low * source.row_tokens).cpu().numpy()
        for index, (layer, bound) in enumerate(place.values()):
            latents = bound.encode_sparse(x_LBTD[layer].flatten(0, 1)[kept_N].float())
            token_M, slot_M = (latents.values_NK > 0).nonzero(as_tuple=True)
            chunk.add(
                index,
                latents.indices_NK[token_M, slot_M].cpu().numpy(),
                position_N[token_M.cpu().numpy()],
                latents.values_NK[token_M, slot_M].float().cpu().numpy(),
            )
        chunk.add_rows(~out_BT.cpu().numpy())
        if chunk.count >= FIRINGS_PER_CHUNK or low + len(batch) == len(rows):
            chunk.write(folder, key, [bound.sae.d_sae for bound in pairs.values()])
            chunk = _Chunk(len(pairs), low + len(batch))
        progress(len(batch) * source.row_tokens)


class _Chunk:
    """The firings of some rows, until they are written."""

    def __init__(self, sites: int, first: int) -> None:
        self.first, self.count = first, 0
        self._kept: list[np.ndarray] = []
        self._parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(sites)]

    def add(self, site: int, latent_M: np.ndarray, position_M: np.ndarray, value_M: np.ndarray) -> None:
        self._parts[site].append((latent_M.astype(np.int32), position_M.astype(np.int32), value_M.astype(np.float32)))
        self.count += len(latent_M)

    def add_rows(self, kept_BT: np.ndarray) -> None:
        self._kept.append(kept_BT.astype(np.uint8))

    def write(self, folder: Path, key: str, widths: Sequence[int]) -> None:
        kept_RT = np.concatenate(self._kept)
        arrays = {"kept": kept_RT}
        for site, (parts, width) in enumerate(zip(self._parts, widths, strict=True)):
            latent_M, position_M, value_M = (np.concatenate(part) for part in zip(*parts, strict=True))
            order_M = np.argsort(latent_M, kind="stable")
            start = np.concatenate([[0], np.cumsum(np.bincount(latent_M, minlength=width))]).astype(np.int64)
            arrays |= {
                f"{site}.start": start,
                f"{site}.position": position_M[order_M],
                f"{site}.value": value_M[order_M],
            }
        path = folder / f"{self.first:09d}-{self.first + len(kept_RT):09d}.safetensors"
        write_atomically(path, lambda scratch: save_file(arrays, scratch, {"key": key}))


def _done_chunks(folder: Path, key: str) -> list[tuple[int, int]]:
    """The rows of the chunks of this key, in order. Chunks of another key are removed."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        if _key_of(path) == key:
            found.append(_rows_of(path))
        else:
            path.unlink()
    return found


def _rows_of(path: Path) -> tuple[int, int]:
    first, end = path.stem.split("-")
    return int(first), int(end)


def _key_of(path: Path) -> str:
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("key", "")
    except (OSError, SafetensorError):
        return ""


class FiringFiles:
    """The chunk files that `write_firings` wrote; raises RunError for files that are missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, sorted(folder.glob("*.safetensors"))
        if not self.paths:
            raise RunError(f"{folder} holds no firings. Run `groupsae contexts` again with --overwrite.")

    def kept_RT(self) -> np.ndarray:
        """True at the positions of the rows that count."""
        return np.concatenate([arrays["kept"] for arrays in self._read(("kept",))]).astype(bool)

    def at(self, site: int) -> SiteFirings:
        """The firings at one site, by its number."""
        return SiteFirings(self, site)

    def _read(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        for path in self.paths:
            with _opened(path) as file:
                yield {name: file.get_tensor(name) for name in names}


class SiteFirings:
    """The firings at one site; `counts` and where they lie are read at once, the firings when asked for."""

    def __init__(self, files: FiringFiles, site: int) -> None:
        self._files, self._site = files, site
        self._start_CS = np.stack([arrays[f"{site}.start"] for arrays in files._read((f"{site}.start",))])

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each latent fires (S,)."""
        return np.diff(self._start_CS, axis=1).sum(0)

    def of(self, low: int, high: int, rows: int | None = None) -> Firings:
        """The firings of the latents from `low` to `high`, the last not included; with `rows`, in chunks that begin
        within so many rows.
        """
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for path, start_S in zip(self._files.paths, self._start_CS, strict=True):
            if rows is not None and _rows_of(path)[0] >= rows:
                break
            begin, end = int(start_S[low]), int(start_S[high])
            latent_M = np.repeat(np.arange(high - low), np.diff(start_S[low : high + 1]))
            with _opened(path) as file:
                position_M, value_M = (file.get_slice(f"{self._site}.{name}")[begin:end] for name in _PARTS)
            parts.append((latent_M, position_M.astype(np.int64), value_M))
        latent_M, position_M, value_M = (np.concatenate(part) for part in zip(*parts, strict=True))
        order_M = np.argsort(latent_M, kind="stable")
        return Firings(high - low, latent_M[order_M], position_M[order_M], value_M[order_M])


_PARTS = ("position", "value")


def _opened(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} is missing or damaged: {error}. Run `groupsae contexts` again with --overwrite."
        ) from error
