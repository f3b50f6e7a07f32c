"""Writes the browser of a run: the page, its script and style, and its data in scripts that are loaded as needed.

    browser/index.html  app.js  style.css
    browser/data/run.js  tokens.js       what there is, and the vocabulary
    browser/data/text/<n>.js             the rows of tokens that windows are cut from
    browser/data/<dictionary>.js         numbers of all its latents, for the list and the search
    browser/data/<dictionary>/<n>.js     pages of 32 latents: windows, histograms, neighbors

A page that is opened from a file may not fetch others, but it may load scripts; so every file of data is a script that
hands one value to `groupsae.receive`. Everything that comes from a model or a text is put on the page as text, never
as HTML.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groupsae.browser.columns import column, ids, shares
from groupsae.interpretability.explanations import Explanations, read_explanations
from groupsae.interpretability.store import SCORES, ContextStore, ContextWindow, at_layer
from groupsae.metrics import INTERPRETABILITY
from groupsae.records import RunDirectory
from groupsae.records.types.contexts import DictionaryRecord

FOLDER = "browser"
PAGE = f"{FOLDER}/index.html"
ASSETS = ("index.html", "app.js", "style.css")
PER_FILE = 32
"""Latents whose pages are in one file."""
TOP = 10
"""The strongest windows that a page shows; of the others, one of each quantile."""
TEXT_TOKENS = 500_000
"""Tokens of the text in one file, at most."""
LIST_TOKENS, LIST_PROMOTED = 4, 5
"""Tokens of each latent that the list shows and the search finds: those it fires on at each layer, and promotes."""

_HERE = Path(__file__).parent


def write_browser(run: RunDirectory, progress: Callable[[int], None] = lambda latents: None) -> list[str]:
    """Write the browser of a run whose contexts are known; the files but those of single pages.

    `progress` is called with latents written. Raises RunError if the contexts are missing or out of date.
    """
    store, explanations = ContextStore(run), read_explanations(run)
    if run.file(FOLDER).exists():
        shutil.rmtree(run.file(FOLDER))
    _write(run, "tokens", store.tokens)
    files = ["tokens", *_write_text(run, store)]
    for number in range(len(store.dictionaries)):
        _write_dictionary(run, store, number, explanations, progress)
        files.append(str(number))
    _write(run, "run", _facts(run, store))
    for name in ASSETS:
        run.write_text(f"{FOLDER}/{name}", (_HERE / name).read_text(encoding="utf-8"))
    return [*(f"{FOLDER}/{name}" for name in ASSETS), *(f"{FOLDER}/data/{name}.js" for name in ["run", *files])]


def _write(run: RunDirectory, name: str, value: Any) -> None:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    run.write_text(f"{FOLDER}/data/{name}.js", f"groupsae.receive({json.dumps(name)},{text});\n")


def _write_text(run: RunDirectory, store: ContextStore) -> list[str]:
    rows = _rows_per_file(store)
    parts = [store.text["ids"][start : start + rows] for start in range(0, store.record.num_rows, rows)]
    for index, ids_RT in enumerate(parts):
        _write(run, f"text/{index}", ids(ids_RT))
    return [f"text/{index}" for index in range(len(parts))]


def _rows_per_file(store: ContextStore) -> int:
    return max(1, TEXT_TOKENS // store.record.row_tokens)


def _facts(run: RunDirectory, store: ContextStore) -> dict[str, Any]:
    record = store.record
    return {
        "name": run.config.name,
        "model": run.config.model.name,
        "text": record.text,
        "num_tokens": record.num_tokens,
        "window": record.window,
        "row_tokens": record.row_tokens,
        "rows_per_file": _rows_per_file(store),
        "quantiles": record.quantiles,
        "per_file": PER_FILE,
        "final_norm": record.final_norm,
        "report": run.file("report/index.html").exists(),
        "scores": [
            {"name": name, "title": INTERPRETABILITY[name].title, "meaning": INTERPRETABILITY[name].formula}
            for name in SCORES
        ],
        "dictionaries": [
            {
                "suite": one.suite,
                "suites": one.suites,
                "group": one.group,
                "layers": one.layers,
                "d_sae": one.d_sae,
                "silent": one.silent,
            }
            for one in record.dictionaries
        ],
    }


# ---- a dictionary


def _write_dictionary(
    run: RunDirectory,
    store: ContextStore,
    number: int,
    explanations: Explanations,
    progress: Callable[[int], None],
) -> None:
    one = store.dictionaries[number]
    explained = _explained(one, explanations)
    _write(run, str(number), _columns(store, number) | {"explained": _first_texts(explained)})
    labels = _Labels(store)
    waiting: list[Any] = []
    done = 0
    for shard, arrays in store.shards(number):
        layers = [at_layer(arrays, layer) for layer in range(len(one.layers))]
        for place in range(shard.count):
            latent = shard.first + place
            waiting.append(_latent(store, number, layers, place, labels, explained.get(latent, {})))
            if len(waiting) == PER_FILE or latent == one.d_sae - 1:
                _write(run, f"{number}/{done}", waiting)
                progress(len(waiting))
                waiting, done = [], done + 1


def _columns(store: ContextStore, number: int) -> dict[str, Any]:
    """The numbers of all latents, layer after layer."""
    layers = range(len(store.dictionaries[number].layers))

    def of(name: str) -> np.ndarray:
        return np.stack([store.column(number, layer, name) for layer in layers])

    found = {
        "count": column(of("count").astype(np.uint32)),
        "peak": column(of("peak").astype(np.float32)),
        "tokens": ids(of("token_id")[:, :, :LIST_TOKENS]),
        **{name: shares(of(name)) for name in SCORES},
    }
    if store.record.promotes:
        found["promoted"] = ids(store.column(number, 0, "promoted_id")[:, :LIST_PROMOTED])
    return {"columns": found}


def _explained(one: DictionaryRecord, explanations: Explanations) -> dict[int, dict[int, dict[str, Any]]]:
    """Explanations by latent and layer."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for suite in one.suites:
        for layer, hookpoint in enumerate(one.layers):
            for latent, explanation in explanations.get((suite, hookpoint), {}).items():
                found.setdefault(latent, {}).setdefault(layer, explanation)
    return found


def _first_texts(explained: Mapping[int, Mapping[int, Mapping[str, Any]]]) -> dict[int, str]:
    return {latent: next(iter(layers.values()))["text"] for latent, layers in explained.items()}


class _Labels:
    """The tokens that latents of other dictionaries fire on most, for the lists of neighbors."""

    def __init__(self, store: ContextStore) -> None:
        self._store, self._known = store, {}

    def of(self, dictionary: int, layer: int, latent: int) -> list[int]:
        """Ids of at most two tokens."""
        place = (dictionary, layer)
        if place not in self._known:
            self._known[place] = self._store.column(*place, "token_id")[:, :2]
        return [int(token) for token in self._known[place][latent] if token >= 0]


# ---- a latent


def _latent(
    store: ContextStore,
    number: int,
    layers: list[dict[str, np.ndarray]],
    place: int,
    labels: _Labels,
    explained: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    first = layers[0]
    found: dict[str, Any] = {
        "near": _pairs(first["near_id"][place], first["near_cosine"][place]),
        "layers": [
            _layer(store, number, index, arrays, place, labels, explained.get(index))
            for index, arrays in enumerate(layers)
        ],
    }
    if store.record.promotes:
        found["promoted"] = _pairs(first["promoted_id"][place], first["promoted_logit"][place])
        found["suppressed"] = _pairs(first["suppressed_id"][place], first["suppressed_logit"][place])
    return found


def _layer(
    store: ContextStore,
    number: int,
    layer: int,
    arrays: Mapping[str, np.ndarray],
    place: int,
    labels: _Labels,
    explained: Mapping[str, Any] | None,
) -> dict[str, Any]:
    windows = _chosen(store.windows(arrays, place))
    found = {
        "count": int(arrays["count"][place]),
        "peak": _short(arrays["peak"][place]),
        "mean": _short(arrays["mean"][place]),
        "histogram": arrays["histogram"][place].tolist(),
        "tokens": _pairs(arrays["token_id"][place], arrays["token_share"][place]),
        "overlap": [None if np.isnan(value) else _short(value) for value in arrays["overlap"][place]],
        "scores": [None if np.isnan(arrays[name][place]) else _short(arrays[name][place]) for name in SCORES],
        "together": _pairs(arrays["together_id"][place], arrays["together_jaccard"][place]),
        "others": _others(store, number, layer, arrays, place, labels),
        "windows": [[one.row, one.first, one.rank, one.quantile, *_values(one.values)] for one in windows],
    }
    return found | ({"explanation": explained} if explained else {})


def _shown(rank: int | None) -> bool:
    return rank is not None and rank < TOP


def _chosen(windows: Sequence[ContextWindow]) -> list[ContextWindow]:
    """The strongest windows, and of the others the first of each quantile, from the strongest on."""
    found: dict[int, ContextWindow] = {}
    for one in windows:
        if one.quantile is not None and not _shown(one.rank):
            found.setdefault(one.quantile, one)
    strongest = [one for one in windows if _shown(one.rank)]
    return [*strongest, *(found[quantile] for quantile in sorted(found, reverse=True))]


def _values(values: np.ndarray) -> list[float]:
    """Place and value of each firing, in turn."""
    return [part for place in np.flatnonzero(values) for part in (int(place), _short(values[place]))]


def _others(
    store: ContextStore, number: int, layer: int, arrays: Mapping[str, np.ndarray], place: int, labels: _Labels
) -> list[Any]:
    """The nearest latents of other suites' SAEs at this layer: dictionary, latent, cosine, two of its tokens."""
    one = store.dictionaries[number]
    found = []
    for index, other in enumerate(one.others[layer]):
        at = store.dictionaries[other].layers.index(one.layers[layer])
        for latent, cosine in _pairs(arrays["other_id"][place, index], arrays["other_cosine"][place, index]):
            found.append([other, latent, cosine, labels.of(other, at, latent)])
    return found


def _pairs(numbers: np.ndarray, values: np.ndarray) -> list[list[float]]:
    return [[int(number), _short(value)] for number, value in zip(numbers, values, strict=True) if number >= 0]


def _short(value: float) -> float:
    """Three figures: what the page shows."""
    return float(f"{float(value):.3g}")
