"""The scores of latents as means over layers and suites, with intervals, and suites compared at equal firing rates.

Latents are the units: a latent of a group is one unit, however many layers it has scores at, so its scores at the
layers are not taken for independent. Rare latents score otherwise than frequent ones; so suites are also compared with
their latents weighted: at each layer those in each tenth of the firing rates of the suite compared with weigh as much
as that suite's own, a tenth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from groupsae.evaluation.intervals import RowEstimate
from groupsae.interpretability.store import SCORES, ContextStore
from groupsae.metrics import INTERPRETABILITY, Metric

TENTHS = 10


@dataclass(frozen=True)
class Scores:
    """The scores of one SAE at one layer (S,), NaN where a latent has none, and how often each latent fires."""

    count_S: np.ndarray
    score_S: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Estimate:
    """A mean over latents, None where none is scored, and what each latent adds, by dictionary."""

    value: float | None
    influence: dict[int, np.ndarray]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval."""
        together = np.concatenate(list(self.influence.values())) if self.influence else np.zeros(0)
        return RowEstimate(self.value, together[together != 0]).interval


@dataclass(frozen=True)
class Summary:
    """Everything that `eval/interpretability.json` holds about the suites."""

    suites: dict[str, dict[str, dict[str, dict[str, Any]]]]
    layers: dict[str, dict[str, dict[str, Any]]]
    matched: dict[str, dict[str, dict[str, Any]]]
    compared_with: str
    differences: dict[str, dict[str, dict[str, Any]]]
    matched_differences: dict[str, dict[str, dict[str, Any]]]


def read_scores(store: ContextStore) -> dict[str, dict[str, tuple[int, Scores]]]:
    """The scores by suite and hookpoint, with the number of the dictionary that they are of."""
    found: dict[str, dict[str, tuple[int, Scores]]] = {}
    for number, one in enumerate(store.dictionaries):
        for layer, hookpoint in enumerate(one.layers):
            columns = {name: store.column(number, layer, name).astype(np.float64) for name in SCORES}
            columns["context_gain"] = columns["surface_auroc"] - columns["token_auroc"]
            scores = Scores(store.column(number, layer, "count"), columns)
            for suite in one.suites:
                found.setdefault(suite, {})[hookpoint] = (number, scores)
    return found


def summarize_scores(found: Mapping[str, Mapping[str, tuple[int, Scores]]], first: str) -> Summary:
    """Means of every score by suite, compared with the suite `first` on the layers that both have."""
    plain = {suite: _by_layer(layers, None) for suite, layers in found.items()}
    even = {suite: _by_layer(layers, found[first]) for suite, layers in found.items()}
    others = [suite for suite in found if suite != first]
    return Summary(
        suites={
            suite: {hookpoint: _rows(layers[hookpoint], found[suite][hookpoint][1]) for hookpoint in layers}
            for suite, layers in plain.items()
        },
        layers={suite: _over_layers(layers) for suite, layers in plain.items()},
        matched={suite: _over_layers(layers) for suite, layers in even.items()},
        compared_with=first,
        differences={suite: _differences(plain[suite], plain[first]) for suite in others},
        matched_differences={suite: _differences(even[suite], even[first]) for suite in others},
    )


_Layers = Mapping[str, Mapping[str, _Estimate]]
"""Estimates by hookpoint and score."""


def _by_layer(
    layers: Mapping[str, tuple[int, Scores]], like: Mapping[str, tuple[int, Scores]] | None
) -> dict[str, dict[str, _Estimate]]:
    found = {}
    for hookpoint, (number, scores) in layers.items():
        if like is not None and hookpoint not in like:
            continue
        other = None if like is None else like[hookpoint][1]
        found[hookpoint] = {name: _estimate(number, scores, name, other) for name in INTERPRETABILITY}
    return found


def _estimate(number: int, scores: Scores, name: str, like: Scores | None) -> _Estimate:
    score_S = scores.score_S[name]
    known_S = np.isfinite(score_S)
    weight_S = known_S.astype(np.float64)
    if like is not None:
        weight_S = _even_weights(scores.count_S, known_S, like.count_S[np.isfinite(like.score_S[name])])
    total = weight_S.sum()
    if not total:
        return _Estimate(None, {})
    weight_S = weight_S / total
    filled_S = np.where(known_S, score_S, 0.0)
    value = float(weight_S @ filled_S)
    return _Estimate(value, {number: weight_S * (filled_S - value) * known_S})


def _even_weights(count_S: np.ndarray, known_S: np.ndarray, like_S: np.ndarray) -> np.ndarray:
    """Weights of latents such that each tenth of the other latents' firing counts weighs what it holds of those."""
    weight_S = np.zeros(len(count_S))
    if not len(like_S):
        return weight_S
    edges = np.unique(np.quantile(like_S, np.arange(1, TENTHS) / TENTHS))
    part_S = np.searchsorted(edges, count_S, "right")
    wanted = np.bincount(np.searchsorted(edges, like_S, "right"), minlength=len(edges) + 1)
    held = np.bincount(part_S[known_S], minlength=len(edges) + 1)
    weight_S[known_S] = (wanted / np.maximum(held, 1))[part_S[known_S]]
    return weight_S


def _mean(estimates: list[_Estimate]) -> _Estimate:
    known = [one for one in estimates if one.value is not None]
    if not known:
        return _Estimate(None, {})
    influence: dict[int, np.ndarray] = {}
    for one in known:
        for number, part_S in one.influence.items():
            influence[number] = influence.get(number, 0) + part_S / len(known)
    return _Estimate(float(np.mean([one.value for one in known])), influence)


def _rows(scored: Mapping[str, _Estimate], scores: Scores) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "mean": one.value,
            "interval": one.interval,
            "scored": int(np.isfinite(scores.score_S[name]).sum()),
        }
        for name, one in scored.items()
    }


def _over_layers(layers: _Layers) -> dict[str, dict[str, Any]]:
    return {name: _over(metric, {hook: found[name] for hook, found in layers.items()}) for name, metric in _METRICS}


_METRICS = tuple(INTERPRETABILITY.items())


def _over(metric: Metric, found: Mapping[str, _Estimate]) -> dict[str, Any]:
    mean = _mean(list(found.values()))
    row: dict[str, Any] = {"mean": mean.value, "interval": mean.interval}
    known = {hookpoint: one.value for hookpoint, one in found.items() if one.value is not None}
    if known and metric.better == "higher":
        worst = min(known, key=known.__getitem__)
        row |= {"worst": known[worst], "worst_layer": worst}
    return row


def _differences(one: _Layers, other: _Layers) -> dict[str, dict[str, Any]]:
    common = [hookpoint for hookpoint in one if hookpoint in other]
    found = {}
    for name in INTERPRETABILITY:
        mine, its = (_mean([layers[hookpoint][name] for hookpoint in common]) for layers in (one, other))
        if mine.value is None or its.value is None:
            continue
        influence = dict(mine.influence)
        for number, part_S in its.influence.items():
            influence[number] = influence.get(number, 0) - part_S
        change = _Estimate(mine.value - its.value, influence)
        found[name] = {"mean": change.value, "interval": change.interval}
    return found
