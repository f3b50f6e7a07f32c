"""Writes an activation cache: a language model is read once, and what it gives is kept on disk.

Shards are written one after the other, each whole or not at all. A call that was cut off leaves
the shards it finished; the same call again goes on after them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from groupsae.activations.cache_format import (
    MANIFEST,
    UNFINISHED,
    CacheManifest,
    Dtype,
    Shard,
    Split,
    read_manifest,
    shard_fault,
)
from groupsae.activations.cache_tensors import read_shard
from groupsae.activations.source import PositionSource, require_rows, row_order
from groupsae.errors import ConfigError, FitError, RunError, StorageError
from groupsae.lock import hold
from groupsae.storage import describe, storage_errors, sweep, write_atomically, write_json
from groupsae.text.tokens import TokenRows

SHARD_BYTES = 128 * 2**20
"""About how large a shard is unless `rows_per_shard` is given; at least one batch of rows."""


def write_cache(
    source: PositionSource,
    folder: Path | str,
    *,
    facts: Mapping[str, Any],
    held_out: PositionSource | None = None,
    num_tokens: int | None = None,
    held_out_tokens: int | None = None,
    dtype: Dtype = "bfloat16",
    rows_per_shard: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> CacheManifest:
    """Write the activations of a source, and of its held-out text, into a folder that `CachedActivations` reads.

    `facts` say what the activations were computed from (model, tokenizer, text), as values that JSON
    can hold; `CachedActivations.require_cache_of` compares them. All rows are kept, or so many rows
    drawn by `seed` that they hold `num_tokens` tokens (`held_out_tokens` on the held-out side).
    Every position is kept, special tokens too. `progress` is called with the bytes newly done,
    in all `planning.cache.cache_bytes` and 16 a row.

    A cache that was cut off is finished: shards that are whole, by their SHA-256, are not computed
    again. One process at a time writes into a folder: another raises RunError. Raises ConfigError for impossible
    arguments, FitError before anything is computed if the disk has too little space, RunError if the
    folder holds something else, StorageError if the disk refuses, NumericalError for NaN and
    infinity, and for activations beyond what float16 can hold.
    """
    _require_arguments(source, held_out, facts, dtype, rows_per_shard, num_tokens, held_out_tokens)
    sides: dict[Split, tuple[PositionSource, Tensor]] = {"train": (source, _chosen(source, num_tokens, seed))}
    if held_out is not None:
        sides["held_out"] = (held_out, _chosen(held_out, held_out_tokens, seed))
    manifest = CacheManifest(
        facts=dict(facts),
        hookpoints=source.hookpoints,
        d_model=source.d_model,
        dtype=dtype,
        row_tokens=source.row_tokens,
        rows={split: len(rows) for split, (_, rows) in sides.items()},
        seed=None if num_tokens is None and held_out_tokens is None else seed,
        skip_special=source.skip_special,
        on_nan=getattr(source, "on_nan", "stop"),
        finite=True,
    )
    per_shard = rows_per_shard or _rows_per_shard(manifest, source.batch_rows)
    pieces = [piece for split, (side, rows) in sides.items() for piece in _pieces(split, side, rows, per_shard)]
    with hold(Path(folder)):
        return _Writer(Path(folder), manifest, pieces, progress or (lambda _: None)).run()


def text_digest(rows: TokenRows) -> str:
    """SHA-256 of the token ids on both sides, a fact that tells text and tokenizer apart."""
    found = hashlib.sha256()
    for side in (rows, rows.held_out):
        found.update(f"{side.ids_RT.shape}".encode())
        found.update(side.ids_RT.astype("<i4").tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class _Piece:
    """The rows of a source that become one shard."""

    file: str
    split: Split
    source: PositionSource
    rows: Tensor


class _Writer:
    """Writes the shards that are missing, then the manifest."""

    def __init__(
        self, folder: Path, manifest: CacheManifest, pieces: list[_Piece], progress: Callable[[int], None]
    ) -> None:
        self.folder, self.manifest, self.pieces, self.progress = folder, manifest, pieces, progress

    def run(self) -> CacheManifest:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        done = self._whole()
        if (self.folder / MANIFEST).exists() and len(done) == len(self.pieces):
            return self._with(done)
        sweep(self.folder)
        self._require_space(done)
        for piece in self.pieces:
            if piece.file in done:
                self.progress(self.manifest.data_bytes(len(piece.rows)))
                continue
            with _what_to_do(len(done), len(self.pieces)):
                done[piece.file] = self._write_shard(piece)
                self._save(UNFINISHED, done)
        self._save(MANIFEST, done)
        with storage_errors(self.folder):
            (self.folder / UNFINISHED).unlink(missing_ok=True)
        return self._with(done)

    def _whole(self) -> dict[str, Shard]:
        """The shards that an earlier call finished. Raises RunError if the folder holds anything else."""
        name = MANIFEST if (self.folder / MANIFEST).exists() else UNFINISHED
        if not (self.folder / name).exists():
            foreign = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
            if foreign and not set(foreign) <= {piece.file for piece in self.pieces}:
                raise RunError(
                    f"{self.folder} is not empty and holds no activation cache (there is {sorted(foreign)[0]}). "
                    "Give a folder that is empty or does not exist."
                )
            return {}
        found = read_manifest(self.folder / name)
        different = self.manifest.differences(found)
        rows = {piece.file: (piece.split, len(piece.rows)) for piece in self.pieces}
        if any(rows.get(shard.file) != (shard.split, shard.rows) for shard in found.shards):
            different.append("other rows, or other numbers of rows per shard")
        if name == MANIFEST and len(found.shards) != len(self.pieces):
            different.append(f"asked {len(self.pieces)} shards, found {len(found.shards)}")
        if different:
            raise RunError(
                f"{self.folder} already holds another activation cache ({'; '.join(different)}). "
                "Give another folder, or delete this one."
            )
        return {
            shard.file: shard
            for shard in found.shards
            if shard_fault(self.folder / shard.file, shard, verify=True) is None
        }

    def _require_space(self, done: Mapping[str, Shard]) -> None:
        needed = sum(self.manifest.shard_bytes(len(p.rows)) for p in self.pieces if p.file not in done)
        with storage_errors(self.folder):
            free = shutil.disk_usage(self.folder).free
        if needed > free:
            rows = sum(len(piece.rows) for piece in self.pieces if piece.file not in done)
            fitting = int(rows * free / needed) * self.manifest.row_tokens
            raise FitError(
                f"The cache needs {_size(needed)} more in {self.folder}, where {_size(free)} are free. Free space, "
                f"give another folder, take fewer tokens (about {fitting:,} fit) or a smaller dtype "
                f"(it is {self.manifest.dtype})."
            )

    def _write_shard(self, piece: _Piece) -> Shard:
        tensors = read_shard(piece.source, piece.rows, self.manifest, self.progress)
        found: dict[str, Any] = {}

        def write(scratch: Path) -> None:
            save_file(tensors, scratch)
            found.update(describe(scratch))

        write_atomically(self.folder / piece.file, write)
        return Shard(file=piece.file, split=piece.split, rows=len(piece.rows), **found)

    def _with(self, done: Mapping[str, Shard]) -> CacheManifest:
        shards = tuple(done[piece.file] for piece in self.pieces if piece.file in done)
        return self.manifest.model_copy(update={"shards": shards})

    def _save(self, name: str, done: Mapping[str, Shard]) -> None:
        write_json(self.folder / name, self._with(done).model_dump(mode="json"))


@contextlib.contextmanager
def _what_to_do(done: int, total: int) -> Iterator[None]:
    """Says in a StorageError that the work so far is kept."""
    try:
        yield
    except StorageError as error:
        raise StorageError(
            f"{error} {done} of {total} shards of the cache are whole; harvest again into the same folder to go on."
        ) from error


def _chosen(source: PositionSource, num_tokens: int | None, seed: int) -> Tensor:
    """The rows that are kept, in ascending order: all, or the first of the random order that training has."""
    if num_tokens is None:
        return torch.arange(source.num_rows)
    return row_order(source.num_rows, seed, 0)[: -(-num_tokens // source.row_tokens)].sort().values


def _pieces(split: Split, source: PositionSource, rows: Tensor, per_shard: int) -> list[_Piece]:
    return [
        _Piece(f"{split}-{number:05}.safetensors", split, source, part)
        for number, part in enumerate(rows.split(per_shard))
        if len(part)
    ]


def _rows_per_shard(manifest: CacheManifest, batch_rows: int) -> int:
    batch_bytes = manifest.shard_bytes(batch_rows)
    return batch_rows * max(1, SHARD_BYTES // batch_bytes)


def _require_arguments(
    source: PositionSource,
    held_out: PositionSource | None,
    facts: Mapping[str, Any],
    dtype: str,
    *counts: int | None,
) -> None:
    require_rows(source)
    if dtype not in get_args(Dtype):
        raise ConfigError(f"A cache's dtype is one of {', '.join(get_args(Dtype))}, not {dtype!r}.")
    if any(count is not None and count < 1 for count in counts):
        raise ConfigError("num_tokens, held_out_tokens and rows_per_shard must be at least 1, or left out.")
    try:
        json.dumps(dict(facts), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"A cache's facts must be values that JSON can hold: {error}.") from error
    if held_out is None:
        return
    for name in ("hookpoints", "d_model", "row_tokens", "skip_special"):
        if getattr(source, name) != getattr(held_out, name):
            raise ConfigError(
                f"The held-out source must read as the other does, but its {name} is {getattr(held_out, name)} where "
                f"the other has {getattr(source, name)}. Use source.held_out()."
            )


def _size(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
