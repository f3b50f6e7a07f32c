"""The figures of a sweep: quality against active latents, as a mean and for every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from groupsae.analysis.run_records import BASELINE, RunRecords, suite_title
from groupsae.analysis.sweep import over_seeds
from groupsae.metrics import METRICS
from groupsae.records.types.summary import OverSeeds, SettingSummary
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GROUP_COLORS, MUTED, PAPER, Drawing

_COLUMNS = 6
_MOST_NAMED = 10
_METRICS = ("fvu", "delta_ce")
Place = tuple[SettingSummary, OverSeeds, OverSeeds]
"""A setting, its L0 and its quality."""


def pareto(records: RunRecords, sweep: Sequence[SettingSummary]) -> Drawing | None:
    """Mean FVU and mean delta CE against mean L0, a point per setting and kind of suite."""
    found = {metric: _means(sweep, f"mean_{metric}") for metric in _METRICS}
    shown = {metric: places for metric, places in found.items() if places}
    if not shown:
        return None
    with theme.canvas(height=3.5) as figure:
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (metric, places) in zip(panels, shown.items(), strict=True):
            _curves(axes, places)
            _name_settings(axes, places)
            axes.set_xlabel("mean L0, active latents per token")
            theme.heading(axes, f"mean {METRICS[metric].title}")
        _legend(figure, sweep)
        svg = theme.to_svg(figure, "pareto", "Quality against active latents of every setting of the sweep")
    caption = (
        "Each point is one SAE setting, averaged over layers; further down and further left is better. A line joins "
        "the settings of its kind that no other beats in FVU at the same or fewer active latents."
    )
    if any(len(row.suites) > 1 for row in sweep):
        caption += " Points are means over seeds, and bars reach from the best seed to the worst."
    return Drawing("pareto", "Quality against active latents", caption, svg)


def pareto_of_layers(records: RunRecords, sweep: Sequence[SettingSummary], metric: str) -> Drawing | None:
    """One metric against L0 for every layer."""
    layers = theme.in_order(records.hookpoints)
    found = {layer: _at_layer(records, sweep, layer, metric) for layer in layers}
    shown = {layer: places for layer, places in found.items() if places}
    if not shown:
        return None
    rows = math.ceil(len(shown) / _COLUMNS)
    columns = math.ceil(len(shown) / rows)
    labels, axis = theme.layer_labels(list(shown))
    with theme.canvas(height=0.5 + 1.75 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for axes in panels.flat[len(shown) :]:
            axes.set_visible(False)
        for axes, label, places in zip(panels.flat, labels, shown.values(), strict=False):
            _curves(axes, places, size=4)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            theme.heading(axes, f"{axis.split(' ')[0]} {label}", pad=4)
        for axes in panels.flat[max(0, len(shown) - columns) : len(shown)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("L0")
        _legend(figure, sweep)
        svg = theme.to_svg(figure, f"pareto-{metric}", f"{METRICS[metric].title} against L0 of every layer")
    title = METRICS[metric].title
    caption = f"{title} against active latents per token, layer by layer; means over seeds where there are several."
    return Drawing(f"pareto-{metric}", f"{title} of every layer against active latents", caption, svg)


def _means(sweep: Sequence[SettingSummary], metric: str) -> list[Place]:
    known = [row for row in sweep if row.mean_l0 is not None and getattr(row, metric) is not None]
    return [(row, row.mean_l0, getattr(row, metric)) for row in known]


def _at_layer(records: RunRecords, sweep: Sequence[SettingSummary], layer: str, metric: str) -> list[Place]:
    def value(row: SettingSummary, name: str) -> OverSeeds | None:
        return over_seeds(records.by_layer(suite, name).get(layer) for suite in row.suites)

    places = [(row, value(row, "l0"), value(row, metric)) for row in sweep]
    return [(row, l0, quality) for row, l0, quality in places if l0 is not None and quality is not None]


def _curves(axes: Axes, places: Sequence[Place], size: float = 6) -> None:
    """The points of every kind, those on the front joined."""
    for kind in dict.fromkeys(row.kind for row, _, _ in places):
        style = _style(kind)
        own = sorted((place for place in places if place[0].kind == kind), key=lambda place: place[1].mean)
        front = [(l0.mean, quality.mean) for row, l0, quality in own if row.on_front]
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=style["markeredgecolor"], linewidth=1.3)
        for _, l0, quality in own:
            axes.vlines(l0.mean, quality.low, quality.high, color=style["markeredgecolor"], linewidth=1.0)
            axes.plot(l0.mean, quality.mean, "o", markersize=size, **style)
    axes.margins(x=0.12, y=0.14)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y")


def _name_settings(axes: Axes, places: Sequence[Place]) -> None:
    """The name of each setting above the highest point that has it."""
    highest: dict[str, Place] = {}
    for place in places:
        setting = place[0].setting
        if setting not in highest or highest[setting][2].high < place[2].high:
            highest[setting] = place
    if len(highest) > _MOST_NAMED:
        return
    for setting, (_, l0, quality) in highest.items():
        style = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 8, "color": MUTED}
        axes.annotate(theme.short(setting), (l0.mean, quality.high), (0, 7), **style)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.08 * (high - low))


def _style(kind: str) -> dict[str, object]:
    color = MUTED if kind == BASELINE else GROUP_COLORS[0]
    face = PAPER if kind == BASELINE else color
    return {"markerfacecolor": face, "markeredgecolor": color, "markeredgewidth": 1.4}


def _legend(figure: Canvas, sweep: Sequence[SettingSummary]) -> None:
    kinds = dict.fromkeys(row.kind for row in sweep)
    handles = [
        Line2D(
            [],
            [],
            marker="o",
            markersize=6,
            color=_style(kind)["markeredgecolor"],
            label=suite_title(kind),
            **_style(kind),
        )
        for kind in kinds
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), borderpad=0)
