"""Figures about cost: quality against cost, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from groupsae.analysis.candidates import view_plan
from groupsae.analysis.run_records import GROUPS, RunRecords, suite_title
from groupsae.analysis.summary import summarize
from groupsae.metrics import METRICS, fixed
from groupsae.records.types.summary import SuiteSummary
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, GROUP_COLORS, INK, MUTED, PAPER, RULE, Drawing
from groupsae.units import format_duration

STAGE_NAMES = {
    "tokens": "tokenize the text",
    "distances": "measure distances",
    "group": "group the layers",
    "plan": "plan the cost",
    "train": "train",
    "contexts": "find contexts",
    "eval": "evaluate",
    "browse": "write the browser",
    "report": "write this page",
}
_SHOWN = ("mean_fvu", "mean_delta_ce")


def cost_and_quality(records: RunRecords) -> Drawing | None:
    """The measured quality of the suites against their cost."""
    summaries = [suite for suite in summarize(records) if suite.published_mflop is not None]
    metrics = [key for key in _SHOWN if any(getattr(suite, key) is not None for suite in summaries)]
    if not metrics:
        return None
    costs = [one.published_mflop for one in view_plan(records).own if one.published_mflop is not None]
    with theme.canvas(height=2.9) as figure:
        panels = figure.subplots(1, len(metrics), sharex=True, squeeze=False)[0]
        panels[0].set_xlim(0, 1.1 * max([*costs, *(suite.published_mflop for suite in summaries)]))
        for axes, metric in zip(panels, metrics, strict=True):
            _quality(axes, summaries, metric)
            axes.vlines(costs, 0, 0.025, transform=axes.get_xaxis_transform(), color=GRAY, linewidth=0.7)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlabel("MFLOP per token, published count")
            axes.grid(axis="y")
        svg = theme.to_svg(figure, "cost", "Quality against cost")
    caption = (
        "Cost counts one forward pass of the language model and one dense SAE step per group (C = A + T·G). Mean FVU "
        "and ΔCE are measured at equal tokens per SAE; lower is better. Ticks are the costs of the other numbers of "
        "groups."
    )
    return Drawing("cost", "Cost against quality", caption, svg)


def _quality(axes: Axes, summaries: Sequence[SuiteSummary], metric: str) -> None:
    known = [suite for suite in summaries if getattr(suite, metric) is not None]
    places = [(suite.published_mflop, getattr(suite, metric)) for suite in known]
    values = [value for _, value in places]
    axes.plot(*zip(*places, strict=True), color=RULE, linewidth=1.2)
    for suite, (cost, value) in zip(known, places, strict=True):
        color = GROUP_COLORS[0] if suite.name == GROUPS else MUTED
        face = color if suite.name == GROUPS else PAPER
        axes.plot(cost, value, "o", markersize=8, markerfacecolor=face, markeredgecolor=color, markeredgewidth=1.6)
        side, shift = ("left", -4) if cost < 0.6 * axes.get_xlim()[1] else ("right", 4)
        above = len(places) == 1 or value > min(values)
        style = {"ha": side, "va": "bottom" if above else "top", "color": color, "weight": "bold"}
        text = f"{theme.short(suite_title(suite.name))}\n{fixed(value)}"
        axes.annotate(text, (cost, value), (shift, 9 if above else -9), textcoords="offset points", **style)
    axes.set_ylim(min(0.0, 1.2 * min(values)), 1.45 * max(max(values), 1e-9))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    theme.heading(axes, f"mean {METRICS[metric].title}")


def stage_seconds(records: RunRecords) -> Drawing | None:
    """How long each stage took, and each part of training."""
    spent = records.stage_seconds
    rows = [(STAGE_NAMES[stage], spent[stage], INK) for stage in STAGE_NAMES if stage in spent]
    if records.train:
        parts = [(f"   {part}", seconds, GRAY) for part, seconds in records.train.seconds.items()]
        where = next((index for index, row in enumerate(rows) if row[0] == STAGE_NAMES["train"]), len(rows) - 1)
        rows[where + 1 : where + 1] = parts
    if not rows:
        return None
    longest = max(seconds for _, seconds, _ in rows) or 1.0
    with theme.canvas(height=0.55 + 0.24 * len(rows)) as figure:
        axes = figure.subplots()
        beside = {"textcoords": "offset points", "va": "center"}
        for row, (name, seconds, color) in enumerate(rows):
            axes.barh(row, seconds, height=0.62, color=color)
            axes.annotate(format_duration(seconds), (seconds, row), (4, 0), **beside)
            ink = INK if color == INK else MUTED
            axes.annotate(theme.short(name), (0, row), (-6, 0), ha="right", color=ink, **beside)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, longest * 1.12)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        theme.time_axis(axes, longest)
        axes.grid(axis="x")
        svg = theme.to_svg(figure, "seconds", "Time per stage")
    caption = "Wall-clock time of each stage."
    if records.train:
        caption += " Gray: the parts of training. One pass of the language model feeds every SAE."
    return Drawing("seconds", "Where the time went", caption, svg)
