"""The files of the contexts stage: written shard by shard, read latent by latent. Needs no torch.

    contexts/index.json            what there is (`groupsae.records.types.contexts`)
    contexts/vocabulary.json       the model's tokens as text
    contexts/text.safetensors      the rows that were read: ids (R, T), kept (R, T), row (R)
    contexts/latents/<dictionary>/<first latent>.safetensors
                                   arrays of some latents at every layer of their group: `<layer>.<array>`

The arrays of a layer, for n latents: count, peak, mean, histogram (n, 16); token_id, token_share (n, 8), the tokens it
fires on; promoted_id, promoted_logit, suppressed_id, suppressed_logit (n, 10); near_id, near_cosine (n, 8), rows of the
same dictionary; other_id, other_cosine (n, O, 4), rows of other suites' dictionaries at this layer; together_id,
together_jaccard (n, 8); overlap (n, L), Jaccard indices with the layers of the group; the scores token_purity,
token_auroc, surface_auroc, intruder, following_auroc (n), NaN where undefined; and the windows (`selection.Windows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from groupsae.errors import RunError
from groupsae.records import RunDirectory
from groupsae.records.types.contexts import ContextsRecord, DictionaryRecord, ShardRecord, VocabularyRecord
from groupsae.storage import write_atomically

FOLDER = "contexts"
TEXT_FILE = f"{FOLDER}/text.safetensors"
SCORES = ("token_purity", "token_auroc", "surface_auroc", "intruder", "following_auroc")
REMEDY = "Make it again by `groupsae contexts RUN --overwrite`."


@dataclass(frozen=True)
class ContextWindow:
    """A stretch of text with one latent's values; `values` is 0 where the latent does not fire.

    rank      place among the latent's strongest windows, None if it is only sampled
    quantile  the quantile it stands for, 0 being the weakest; None if it is only among the strongest
    kept      whether each position counts; the others are special tokens and outliers
    """

    row: int
    first: int
    ids: np.ndarray
    values: np.ndarray
    kept: np.ndarray
    rank: int | None
    quantile: int | None


@dataclass(frozen=True)
class LatentContexts:
    """One latent at one layer: its numbers by name (see above), and windows where it fires and where it is silent."""

    latent: int
    hookpoint: str
    facts: Mapping[str, np.ndarray]
    windows: tuple[ContextWindow, ...]
    silent: tuple[ContextWindow, ...]


class ContextStore:
    """The contexts of a run. Raises RunError if the stage has not run, is out of date, or its files are damaged."""

    def __init__(self, run: RunDirectory) -> None:
        run.require("contexts")
        self.run = run
        self.record = ContextsRecord.read(run)

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary as text."""
        return VocabularyRecord.read(self.run).tokens

    @cached_property
    def text(self) -> dict[str, np.ndarray]:
        """The rows that were read: `ids` and `kept` (R, T), and their numbers among the run's rows, `row` (R)."""
        return _load(self.run.file(TEXT_FILE))

    @property
    def dictionaries(self) -> tuple[DictionaryRecord, ...]:
        """All dictionaries."""
        return self.record.dictionaries

    def of_suite(self, suite: str) -> list[int]:
        """The numbers of a suite's dictionaries. Raises RunError for a suite that there is not."""
        found = [number for number, one in enumerate(self.dictionaries) if suite in one.suites]
        if not found:
            known = sorted({name for one in self.dictionaries for name in one.suites})
            raise RunError(f"{self.run.path} has no suite {suite!r}; it has {', '.join(known)}.")
        return found

    def shards(self, dictionary: int) -> Iterator[tuple[ShardRecord, dict[str, np.ndarray]]]:
        """The shards of a dictionary with their arrays, one after the other."""
        for shard in self.dictionaries[dictionary].shards:
            yield shard, _load(self.run.file(shard.file))

    def column(self, dictionary: int, layer: int, name: str) -> np.ndarray:
        """One array of all latents of a dictionary at a layer."""
        shards = self.dictionaries[dictionary].shards
        return np.concatenate([_load_one(self.run.file(shard.file), f"{layer}.{name}") for shard in shards])

    def latent(self, dictionary: int, layer: int, latent: int) -> LatentContexts:
        """One latent at one layer of its group. Raises RunError for a number that is no latent."""
        one = self.dictionaries[dictionary]
        if not 0 <= layer < len(one.layers):
            raise RunError(f"There is no layer {layer} in {one.suite} {one.group}: it has 0 to {len(one.layers) - 1}.")
        if not 0 <= latent < one.d_sae:
            raise RunError(f"There is no latent {latent} in {one.suite} {one.group}: it has 0 to {one.d_sae - 1}.")
        shard = next(shard for shard in one.shards if shard.first <= latent < shard.first + shard.count)
        arrays = at_layer(_recent(self.run.file(shard.file)), layer)
        place = latent - shard.first
        facts = {name: array[place] for name, array in arrays.items() if not name.startswith(("window_", "silent_"))}
        windows, silent = self.windows(arrays, place), self.silent(arrays, place)
        return LatentContexts(latent, one.layers[layer], facts, windows, silent)

    def windows(self, arrays: Mapping[str, np.ndarray], place: int) -> tuple[ContextWindow, ...]:
        """The windows of the latent at this place of a shard, the strongest first."""
        low, high = np.searchsorted(arrays["window_latent"], [place, place + 1])
        return tuple(self._window(arrays, index) for index in range(low, high))

    def silent(self, arrays: Mapping[str, np.ndarray], place: int) -> tuple[ContextWindow, ...]:
        """Windows in which the latent at this place of a shard does not fire."""
        low, high = np.searchsorted(arrays["silent_latent"], [place, place + 1])
        none = np.zeros(self.record.window, dtype=np.float32)
        return tuple(
            self._cut(int(arrays["silent_row"][index]), int(arrays["silent_first"][index]), none, None, None)
            for index in range(low, high)
        )

    def _window(self, arrays: Mapping[str, np.ndarray], index: int) -> ContextWindow:
        begin, end = arrays["window_start"][index : index + 2]
        values = np.zeros(self.record.window, dtype=np.float32)
        values[arrays["window_offset"][begin:end]] = arrays["window_value"][begin:end]
        rank, quantile = (int(arrays[f"window_{name}"][index]) for name in ("rank", "quantile"))
        row, first = int(arrays["window_row"][index]), int(arrays["window_first"][index])
        return self._cut(row, first, values, None if rank == 255 else rank, None if quantile == 255 else quantile)

    def _cut(self, row: int, first: int, values: np.ndarray, rank: int | None, quantile: int | None) -> ContextWindow:
        here = slice(first, first + self.record.window)
        return ContextWindow(
            row, first, self.text["ids"][row, here], values, self.text["kept"][row, here].astype(bool), rank, quantile
        )


def at_layer(arrays: Mapping[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    """The arrays of one layer, by their names without it."""
    prefix = f"{layer}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def write_shard(path: Path, layers: list[dict[str, np.ndarray]], key: str) -> None:
    """Write the arrays of some latents at every layer of their group."""
    named = {f"{layer}.{name}": array for layer, arrays in enumerate(layers) for name, array in arrays.items()}
    write_arrays(path, named, key)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], key: str = "") -> None:
    """Write arrays into one file, whole or not at all."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(path, lambda scratch: save_file(contiguous, scratch, {"key": key}))


def has_key(path: Path, key: str) -> bool:
    """Whether a file is there, can be read, and was made for this key."""
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("key") == key
    except (OSError, SafetensorError):
        return False


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is missing or damaged: {error}. {REMEDY}") from error


def _load_one(path: Path, name: str) -> np.ndarray:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is missing or damaged: {error}. {REMEDY}") from error


@lru_cache(maxsize=4)
def _recent(path: Path) -> dict[str, np.ndarray]:
    return _load(path)
