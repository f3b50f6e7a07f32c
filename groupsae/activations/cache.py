"""Activations that were written to disk once and are read from there, without the language model.

Rows are read straight into memory, a stretch of consecutive rows at a time. Mapping the files would be
slower (docs/activation-cache.md has the numbers), would count what was read as resident, and would end
the process where a file is cut off while it is read.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.cache_format import MANIFEST, Shard, Split, compare, read_manifest, shard_tensors
from groupsae.activations.cache_tensors import not_finite
from groupsae.activations.positions import OutlierRule, PositionFacts
from groupsae.errors import ConfigError, HookpointError, NumericalError, RunError, TextError, unknown

HUGE_FROM_BYTES = 4 * 2**20
"""Memory from this size on is asked for in huge pages."""
AHEAD = 256
"""Reads that the system is told of at once."""


class CachedActivations:
    """The activations that `write_cache`, or another program, wrote into a folder: a `PositionSource`.

        acts = CachedActivations("cache/")
        x_LND = acts.read([0, 1, 2])

    Activations come in the cache's dtype, int8 as float32. They are those of the harvester that was
    written, bit for bit in that dtype. Special tokens are left out as they were by that harvester,
    unless `skip_special` says otherwise. Reads raise NumericalError for NaN and infinity in caches of
    other programs; `write_cache` writes none, so that reads of its caches need not look. With
    `verify`, every file's SHA-256 is checked first, which reads the whole cache. Raises RunError naming
    the file if the cache is missing, damaged, unfinished, foreign, or of a newer version.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        device: torch.device | str = "cpu",
        batch_rows: int = 16,
        skip_special: bool | None = None,
        verify: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder / MANIFEST)
        self._places = {
            shard.file: shard_tensors(self.folder, self.manifest, shard, verify=verify)
            for shard in self.manifest.shards
        }
        self.hookpoints, self.d_model = self.manifest.hookpoints, self.manifest.d_model
        self.row_tokens, self.batch_rows = self.manifest.row_tokens, batch_rows
        self.device, self.num_masked = torch.device(device), 0
        self.skip_special = self.manifest.skip_special if skip_special is None else skip_special
        if self.manifest.skip_special and not self.skip_special and self.manifest.on_nan == "mask":
            raise ConfigError(
                f"{self.folder} was harvested with special tokens left out and on_nan = 'mask', so that activations of "
                "special tokens may not be finite. Use skip_special = true, or harvest again without it."
            )
        self._layers = tuple(range(len(self.hookpoints)))
        self._set_split("train")

    @property
    def facts(self) -> dict[str, Any]:
        """What the cache says that its activations were computed from."""
        return self.manifest.facts

    @property
    def position_facts(self) -> PositionFacts | None:
        """What the harvester measured of positions that are left out; None for caches of other programs."""
        measured = self.facts.get("positions")
        rule = OutlierRule(self.facts.get("skip_first", 0), self.facts.get("max_norm", 0.0))
        return PositionFacts.from_json(measured, rule) if measured else None

    @property
    def norm_limits(self) -> Mapping[str, float]:
        """The largest norm that counted as ordinary, by hookpoint; infinite where none was measured."""
        measured = self.position_facts
        return measured.limit if measured else dict.fromkeys(self.hookpoints, float("inf"))

    def require_cache_of(self, facts: Mapping[str, Any], hookpoints: Sequence[str] = ()) -> None:
        """Raises RunError unless the cache has these facts and these hookpoints; it may have more of both."""
        different = compare(facts, self.manifest.facts)
        missing = [name for name in hookpoints if name not in self.manifest.hookpoints]
        if missing:
            different.append(f"hookpoints {', '.join(missing)} asked, but found only {', '.join(self.hookpoints)}")
        if different:
            raise RunError(
                f"The activation cache in {self.folder} is of something else: {'; '.join(different)}. "
                "Harvest into another folder, or set the run to what the cache holds."
            )

    def held_out(self) -> CachedActivations:
        """The text that is kept for evaluation. Raises TextError if there is none in the cache."""
        if self._split == "held_out" or not self.manifest.rows.get("held_out"):
            raise TextError(f"There are no held-out rows in {self.folder}, or these rows are themselves held out.")
        other = copy.copy(self)
        other.num_masked = 0
        other._set_split("held_out")
        return other

    def narrowed(self, hookpoints: tuple[str, ...]) -> CachedActivations:
        """The same at some of its hookpoints; the others are not read from the disk."""
        for name in hookpoints:
            if name not in self.hookpoints:
                raise HookpointError(unknown("hookpoint", name, self.hookpoints))
        other = copy.copy(self)
        other.hookpoints = tuple(name for name in self.hookpoints if name in hookpoints)
        other._layers = tuple(self.manifest.hookpoints.index(name) for name in other.hookpoints)
        return other

    def read(self, rows: Sequence[int]) -> Tensor:
        """The activations x_LND of these rows' tokens, in the order of the rows."""
        return self.read_by_row(rows)[0]

    def read_by_row(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What `read` gives, and how many tokens each row gave (B,)."""
        if not len(rows):
            nothing_LND = torch.empty(len(self.hookpoints), 0, self.d_model, dtype=self._dtype, device=self.device)
            return nothing_LND, torch.zeros(0, dtype=torch.long)
        x_LBTD, special_BT, left_out_BT = self._read(rows)
        out_BT = special_BT | left_out_BT if self.skip_special else left_out_BT
        self.num_masked += int(left_out_BT.sum())
        kept_N = (~out_BT).flatten().nonzero().squeeze(1)
        x_LND = x_LBTD.flatten(1, 2)
        if len(kept_N) < out_BT.numel():
            kept_LND = _empty((len(x_LND), len(kept_N), self.d_model), x_LND.dtype)
            x_LND = torch.index_select(x_LND, 1, kept_N, out=kept_LND)
        return x_LND.to(self.device), (~out_BT).sum(1)

    def read_positions(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The activations x_LBTD at every position of these rows, and special_BT, true at special tokens.

        Positions that were masked because their activations are not finite count as special.
        """
        x_LBTD, special_BT, left_out_BT = self._read(rows)
        self.num_masked += int(left_out_BT.sum())
        return x_LBTD.to(self.device), (special_BT | left_out_BT).to(self.device)

    def documents(self, rows: Sequence[int]) -> Tensor:
        """The number of each row's document, int64 (B,): rows that share one are not independent."""
        return self._gather("documents", torch.int64, rows, ())

    def tokens(self, rows: Sequence[int]) -> Tensor:
        """The token ids of these rows, int64 (B, T)."""
        return self._gather("tokens", torch.int32, rows, (self.row_tokens,)).long()

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.manifest.dtype == "int8" else getattr(torch, self.manifest.dtype)

    def _set_split(self, split: Split) -> None:
        self._split = split
        self._shards = [shard for shard in self.manifest.shards if shard.split == split]
        self._starts = [0, *itertools.accumulate(shard.rows for shard in self._shards)]
        self.num_rows = self._starts[-1]

    def _read(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        positions, width = (self.row_tokens,), (self.row_tokens, self.d_model)
        special_BT = self._gather("special", torch.bool, rows, positions)
        left_out_BT = self._gather("left_out", torch.bool, rows, positions)
        if self.manifest.dtype == "int8":
            q_LBTD = self._gather("activations", torch.int8, rows, width, self._layers)
            scales_LBT = self._gather("scales", torch.float32, rows, positions, self._layers)
            self._require_finite(scales_LBT, rows)
            x_LBTD = _empty(tuple(q_LBTD.shape), torch.float32)
            return torch.mul(q_LBTD, scales_LBT[..., None], out=x_LBTD), special_BT, left_out_BT
        x_LBTD = self._gather("activations", getattr(torch, self.manifest.dtype), rows, width, self._layers)
        self._require_finite(x_LBTD, rows)
        return x_LBTD, special_BT, left_out_BT

    def _require_finite(self, x: Tensor, rows: Sequence[int]) -> None:
        found = None if self.manifest.finite else not_finite(x)
        if found:
            raise NumericalError(
                f"Activations at {self.hookpoints[found[0]]} hold NaN or infinity in row {rows[found[1]]} of the "
                f"{self._split} side of {self.folder}. The program that wrote the cache must leave them out."
            )

    def _gather(
        self,
        name: str,
        dtype: torch.dtype,
        rows: Sequence[int],
        shape: tuple[int, ...],
        layers: tuple[int, ...] | None = None,
    ) -> Tensor:
        """A tensor's numbers for these rows, (B, *shape), or (L, B, *shape) if it has layers."""
        planes = (0,) if layers is None else layers
        row_bytes = math.prod(shape) * dtype.itemsize
        bytes_LB = _empty((len(planes), len(rows), row_bytes), torch.uint8)
        memory_LB = bytes_LB.numpy()
        reads = []
        for shard, first, begin, count in self._stretches(rows):
            path, place = self.folder / shard.file, self._places[shard.file][name]
            for index, plane in enumerate(planes):
                offset = place.start + (plane * shard.rows + first) * row_bytes
                reads.append(_Read(path, offset, memory_LB[index, begin : begin + count].reshape(-1)))
        _read_all(reads)
        found = bytes_LB.view(dtype).view(len(planes), len(rows), *shape)
        return found if layers is not None else found[0]

    def _stretches(self, rows: Sequence[int]) -> Iterator[tuple[Shard, int, int, int]]:
        """Consecutive rows of one shard: the shard, the first row in it, the place in `rows`, and how many."""
        begin = 0
        while begin < len(rows):
            row = rows[begin]
            if not 0 <= row < self.num_rows:
                raise IndexError(f"There is no row {row}; the cache has rows 0 to {self.num_rows - 1}.")
            number = bisect_right(self._starts, row) - 1
            count = 1
            while begin + count < len(rows) and rows[begin + count] == row + count < self._starts[number + 1]:
                count += 1
            yield self._shards[number], row - self._starts[number], begin, count
            begin += count


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor, in huge pages if the system has them; making small ones takes longer than reading."""
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE_FROM_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # out of memory, which torch reports as it does elsewhere
        return torch.empty(shape, dtype=dtype)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@dataclass(frozen=True)
class _Read:
    """Bytes of a file, from `offset` on, that fill `memory`."""

    path: Path
    offset: int
    memory: np.ndarray


def _read_all(reads: Sequence[_Read]) -> None:
    """Do these reads in turn; the system is told of the next `AHEAD` first, so that it can fetch ahead."""
    for start in range(0, len(reads), AHEAD):
        _read_together(reads[start : start + AHEAD])


def _read_together(reads: Sequence[_Read]) -> None:
    path = reads[0].path
    with contextlib.ExitStack() as stack:
        try:
            files: dict[Path, FileIO] = {}
            for read in reads:
                path = read.path
                if path not in files:
                    files[path] = stack.enter_context(FileIO(path))
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(files[path].fileno(), read.offset, read.memory.size, os.POSIX_FADV_WILLNEED)
            for read in reads:
                path = read.path
                _fill(read.memory, files[path], read.offset)
        except OSError as error:
            remedy = "Copy the cache again, or harvest again."
            raise RunError(f"{path} cannot be read any more: {error}. {remedy}") from error


def _fill(memory: np.ndarray, file: FileIO, offset: int) -> None:
    file.seek(offset)
    left = memory.data
    while left:
        count = file.readinto(left)
        if not count:
            raise OSError(f"it ends before byte {offset + memory.size}")
        left = left[count:]
