"""The report's tables of what was measured: suites, layers, groups, circuits, similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from groupsae.analysis.frames import NONE, Column, Frame
from groupsae.analysis.run_records import BASELINE, GROUPS, RunRecords, suite_title
from groupsae.metrics import COSTS, METRICS, Metric, fixed, percent
from groupsae.partition import group_name
from groupsae.records.types.measured import OverLayers
from groupsae.records.types.summary import SuiteSummary
from groupsae.report.figures.theme import group_label, in_order

# ---- the suites side by side


@dataclass(frozen=True)
class Row:
    """A metric of several suites: its title and meaning, a text per suite, and how much the last differs."""

    title: str
    meaning: str
    values: tuple[str, ...]
    change: str = ""


_SIDE_BY_SIDE = (
    "num_saes", "mean_fvu", "worst_fvu", "mean_cosine", "mean_delta_ce", "mean_ce_score", "mean_kl",
    "all_layers_delta_ce", "mean_l0", "mean_dead_share", "published_mflop", "published_pflop", "seconds",
)  # fmt: skip
_AS_RATIO = {*COSTS, "num_saes", "published_pflop"}


def side_by_side(summaries: Sequence[SuiteSummary]) -> list[Row]:
    """A row per metric, with the change from baseline to groups, at equal tokens per SAE."""
    rows = [_row(METRICS[name], summaries) for name in _SIDE_BY_SIDE]
    return [row for row in rows if row]


def _row(metric: Metric, summaries: Sequence[SuiteSummary]) -> Row | None:
    values = {one.name: getattr(one, metric.name) for one in summaries}
    if all(value is None for value in values.values()):
        return None
    texts = []
    for one in summaries:
        value, interval = values[one.name], one.intervals.get(metric.name)
        text = (NONE if value is None else metric.text(value)) + (_margin(interval) if interval else "")
        texts.append(f"{text} ({one.worst_layer})" if metric.name == "worst_fvu" and one.worst_layer else text)
    changed = _change(metric, values.get(GROUPS), values.get(BASELINE))
    interval = next((one.changes.get(metric.name) for one in summaries if one.name == GROUPS), None)
    return Row(
        metric.title, metric.formula, tuple(texts), changed + (_margin(interval) if changed and interval else "")
    )


def _change(metric: Metric, value: float | None, reference: float | None) -> str:
    if value is None or reference is None:
        return ""
    if metric.name in _AS_RATIO:
        return f"× {value / reference:.2f}" if reference else NONE
    text = metric.text(value - reference)
    return ("" if text.startswith("−") or value == reference else "+") + text.replace("%", "pp")


def _margin(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"\u00a0±\u00a0{fixed((high - low) / 2, 4)}"


# ---- layers and groups


_LAYER_METRICS = ("fvu", "cosine", "delta_ce", "ce_score", "kl", "l0", "dead_share")
_MORE_METRICS = (
    "explained_variance_per_token", "l1", "l2_ratio", "relative_reconstruction_bias", "dense_share", "silent_share",
    "kl_score", "ce_score_mean", "kl_score_mean",
)  # fmt: skip
_SCOPED_METRICS = ("fvu", "cosine", "l0", "delta_ce", "kl")
_GROUP_METRICS = ("fvu", "delta_ce", "kl", "dead_share")


def layer_frame(records: RunRecords) -> Frame | None:
    """A row per layer, for each metric a column per suite."""
    suites = [name for name in (BASELINE, GROUPS) if any(records.by_layer(name, key) for key in _LAYER_METRICS)]
    if not suites:
        return None

    def read(suite: str, metric: str) -> Callable[[str], float | None]:
        return records.by_layer(suite, metric).get

    def group(layer: str) -> str:
        chosen = records.chosen
        return group_name(chosen.group_of(layer) if chosen and layer in chosen.hookpoints else (layer,))

    columns = [Column("layer", "layer", str), Column("group", "group", group, group_label)]
    for key in _LAYER_METRICS:
        for suite in suites:
            title = "own" if suite == BASELINE else suite
            changes = {"name": f"{key}_{suite}", "title": title, "value": read(suite, key)}
            columns.append(Column.of(key, head=METRICS[key].title, **changes))
    note = "“own”: the layer under an SAE of its own. “groups”: under its group’s SAE. Both saw as many tokens."
    return Frame("layer-table", "Every layer", in_order(records.hookpoints), columns, notes=[note]).known()


def group_frame(records: RunRecords) -> Frame | None:
    """A row per group: mean and worst layer."""
    known = [record for record in (records.reconstruction, records.losses) if record and GROUPS in record.groups]
    if records.chosen is None or not known:
        return None

    def read(metric: str, end: str) -> Callable[[tuple[str, ...]], float | None]:
        def value(group: tuple[str, ...]) -> float | None:
            found = records.over_group(group_name(group), metric)
            return getattr(found, end) if found else None

        return value

    columns = [Column("group", "group", group_name, group_label), Column("layers", "layers", len)]
    for key in _GROUP_METRICS:
        for end, title in (("mean", METRICS[key].title), ("worst", "worst")):
            columns.append(Column.of(key, name=f"{key}_{end}", title=title, value=read(key, end)))
    return Frame("group-table", "Every group, mean and worst layer", records.chosen.groups, columns)


class _SuiteLayer(NamedTuple):
    suite: str
    layer: str


def more_frame(records: RunRecords) -> Frame | None:
    """A row per suite and layer with the metrics that the table of layers has no room for."""
    suites = [name for name in (BASELINE, GROUPS) if name in records.partitions]
    values = {(suite, key): records.by_layer(suite, key) for suite in suites for key in _MORE_METRICS}
    if not any(values.values()):
        return None

    def read(metric: str) -> Callable[[_SuiteLayer], float | None]:
        return lambda row: values[row.suite, metric].get(row.layer)

    rows = [_SuiteLayer(suite, layer) for layer in in_order(records.hookpoints) for suite in suites]
    columns = (
        Column("layer", "layer", attrgetter("layer")),
        Column("suite", "suite", attrgetter("suite"), suite_title),
        *(Column.of(key, value=read(key)) for key in _MORE_METRICS),
    )
    note = "Definitions, and what other tools print under these names, are in docs/metrics.md."
    return Frame("more-table", "Further metrics of every layer", rows, columns, notes=[note]).known()


class _SuiteScope(NamedTuple):
    suite: str
    scope: str
    other: bool


def scope_frame(records: RunRecords) -> Frame | None:
    """Means over layers with special positions left out, and included."""
    known = [one for one in (records.reconstruction, records.losses) if one and one.other_scope]
    if not known:
        return None
    scopes = ((known[0].scope, False), (known[0].other_scope.scope, True))
    rows = [_SuiteScope(suite, scope, other) for suite in known[0].suites for scope, other in scopes]

    def read(metric: str) -> Callable[[_SuiteScope], float | None]:
        def value(row: _SuiteScope) -> float | None:
            found: OverLayers | None = records.over_layers(row.suite, metric, other_scope=row.other)
            return found.mean if found else None

        return value

    columns = (
        Column("suite", "suite", attrgetter("suite"), suite_title),
        Column("positions", "positions", attrgetter("scope")),
        *(Column.of(key, value=read(key)) for key in _SCOPED_METRICS),
    )
    note = (
        "Special tokens begin or end a text, or pad it. The first row of a suite is at the positions that all other "
        "tables use."
    )
    return Frame("scope-table", "With and without special positions", rows, columns, notes=[note])


class _DensityBin(NamedTuple):
    low: float
    high: float
    counts: dict[str, int]


def density_frame(records: RunRecords) -> Frame | None:
    """Latents by the share of tokens on which they fire, summed over layers."""
    record = records.reconstruction
    if record is None or len(record.density_edges) < 2:
        return None
    totals = {
        name: [sum(counts) for counts in zip(*(layer.density for layer in layers.values()), strict=True)]
        for name, layers in record.suites.items()
    }
    bins = [
        _DensityBin(low, high, {name: total[place] for name, total in totals.items()})
        for place, (low, high) in enumerate(pairwise(record.density_edges))
    ]
    ends = {one.low: one.high for one in bins}

    def read(suite: str) -> Callable[[_DensityBin], int]:
        return lambda row: row.counts[suite]

    columns = (
        Column(
            "share_of_tokens",
            "fires on",
            attrgetter("low"),
            lambda low: f"{percent(low, 4)} to {percent(ends[low], 4)}",
        ),
        *(Column(name, suite_title(name), read(name), lambda number: f"{number:,}") for name in totals),
    )
    rows = [one for one in bins if any(one.counts.values())]
    note = "Numbers of latents, each counted at every layer that it serves."
    return Frame("density-table", "How often latents fire", rows, columns, notes=[note])


def quality_frames(records: RunRecords) -> list[Frame]:
    """The tables that are folded away below the table of layers."""
    makers = (group_frame, more_frame, scope_frame, density_frame)
    return [frame for frame in (make(records) for make in makers) if frame is not None]
