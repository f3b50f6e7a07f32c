"""Results over layers: the mean and worst layer of suites and groups, and differences between suites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from groupsae.evaluation.intervals import RowEstimate, difference, mean
from groupsae.evaluation.measures import Measured
from groupsae.metrics import Metric
from groupsae.saes.suite import Suite

Layers = Mapping[str, Measured]
"""A suite's results by hookpoint."""


def over_layers(layers: Layers, metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """Each metric's `mean` over these layers with its `interval`, its `worst` value and `worst_layer`.

    Layers at which a metric is undefined are left out; a metric without a better direction has no
    worst layer, a share of latents no interval.
    """
    found = {}
    for name, metric in metrics.items():
        values = {hookpoint: getattr(one, name) for hookpoint, one in layers.items()}
        defined = {hookpoint: value for hookpoint, value in values.items() if value is not None}
        if not defined:
            found[name] = {"mean": None}
            continue
        row: dict[str, Any] = {"mean": sum(defined.values()) / len(defined)}
        estimate = _mean(layers.values(), name)
        if estimate is not None and estimate.interval:
            row["interval"] = estimate.interval
        if metric.better != "neither":
            worst = max(defined, key=lambda hookpoint: _badness(defined[hookpoint], metric))
            row |= {"worst": defined[worst], "worst_layer": worst}
        found[name] = row
    return found


def by_group(suite: Suite, layers: Layers, metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """`over_layers` of each group's layers, by the group's name."""
    return {
        name: over_layers({hookpoint: layers[hookpoint] for hookpoint in group}, metrics)
        for name, group in zip(suite.partition.names, suite.partition.groups, strict=True)
    }


def differences(one: Layers, other: Layers, metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """How much larger each metric's mean over the layers that both have is for `one`, judged row by row."""
    common = [hookpoint for hookpoint in one if hookpoint in other]
    found = {}
    for name in metrics:
        pair = [_mean([layers[hookpoint] for hookpoint in common], name) for layers in (one, other)]
        if pair[0] is None or pair[1] is None:
            continue
        change = difference(pair[0], pair[1])
        if change.value is not None:
            found[name] = {"mean": change.value, "interval": change.interval}
    return found


def summary(
    suites: Mapping[str, Suite],
    found: Mapping[str, Layers],
    metrics: Mapping[str, Metric],
    references: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """All three for a comparison: `layers` and `groups` by suite, and `differences` from the suite `compared_with`.

    That is the first suite, or for a suite among `references` the one named there.
    """
    first = next(iter(found))
    other = references_of(found, references)
    return {
        "layers": {name: over_layers(layers, metrics) for name, layers in found.items()},
        "groups": {name: by_group(suites[name], layers, metrics) for name, layers in found.items()},
        "compared_with": first,
        "references": dict(references or {}),
        "differences": {name: differences(found[name], found[its], metrics) for name, its in other.items()},
    }


def references_of(names: Iterable[str], references: Mapping[str, str] | None = None) -> dict[str, str]:
    """The suite that each suite is compared with: the first, or as `references` say; none with itself."""
    names, known = list(names), references or {}
    pairs = {name: known.get(name, names[0]) for name in names}
    return {name: other for name, other in pairs.items() if name != other}


def _mean(results: Iterable[Measured], name: str) -> RowEstimate | None:
    estimates = [one.estimates[name] for one in results if name in one.estimates]
    return mean(estimates) if estimates else None


def _badness(value: float, metric: Metric) -> float:
    return {"lower": value, "higher": -value, "near 1": abs(value - 1)}[metric.better]
