"""Figures about cost: what every number of groups would cost, what was trained, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from groupsae.analysis.candidates import PlanView, view_plan
from groupsae.analysis.run_records import GROUPS, RunRecords, suite_title
from groupsae.analysis.summary import summarize
from groupsae.metrics import METRICS, fixed
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.summary import SuiteSummary
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, GROUP_COLORS, INK, MARK, MUTED, PAPER, RULE, Drawing
from groupsae.report.wording import plural
from groupsae.units import format_duration

STAGE_NAMES = {
    "tokens": "tokenize the text",
    "distances": "measure distances",
    "group": "group the layers",
    "plan": "plan the cost",
    "train": "train",
    "eval": "evaluate",
    "report": "write this page",
}
_SHOWN = ("mean_fvu", "mean_delta_ce")
_END_LABELS = ({"xytext": (6, 3), "ha": "left"}, {"xytext": (0, 9), "ha": "center"})


def cost_and_quality(records: RunRecords) -> Drawing | None:
    """Distance inside groups, and measured quality, against cost."""
    plan = view_plan(records)
    points = [one for one in plan.own if one.published_mflop is not None and one.amad is not None]
    summaries = [suite for suite in summarize(records) if suite.published_mflop is not None]
    metrics = [key for key in _SHOWN if any(getattr(suite, key) is not None for suite in summaries)]
    has_frontier = len(points) > 1 and plan.quality is None  # else the plan's own figure shows more
    if not has_frontier and not metrics:
        return None
    costs = [one.published_mflop for one in points]
    with theme.canvas(height=2.9) as figure:
        panels = figure.subplots(1, has_frontier + len(metrics), sharex=True, squeeze=False)[0]
        panels[0].set_xlim(0, 1.1 * max([*costs, *(suite.published_mflop for suite in summaries)]))
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlabel("MFLOP per token, published count")
            axes.grid(axis="y")
        if has_frontier:
            _frontier(panels[0], plan, points, records.max_amad)
        for axes, metric in zip(panels[has_frontier:], metrics, strict=True):
            _quality(axes, summaries, metric)
            axes.vlines(costs, 0, 0.025, transform=axes.get_xaxis_transform(), color=GRAY, linewidth=0.7)
        svg = theme.to_svg(figure, "cost", "Cost against distance inside groups and against quality")
    caption = "Cost counts one forward pass of the language model and one dense SAE step per group (C = A + T·G)."
    if has_frontier:
        caption += " Left: every number of groups that was considered. Each further group adds the same cost."
    if metrics:
        caption += (
            " Mean FVU and ΔCE are measured at equal tokens per SAE; lower is better. Ticks on their axes are the "
            "costs of the other numbers of groups. The table below compares the suites at equal FLOPs as well."
        )
    return Drawing("cost", "Cost against quality", caption, svg)


def _frontier(axes: Axes, plan: PlanView, points: Sequence[Candidate], max_amad: float | None) -> None:
    places = [(one.published_mflop, one.amad) for one in points]
    axes.plot(*zip(*places, strict=True), color=GRAY, linewidth=1.2, marker="o", markersize=3.5, markerfacecolor=GRAY)
    choice = plan.choice
    for one, label in zip((points[0], points[-1]), _END_LABELS, strict=True):
        if choice is None or one.num_groups != choice.num_groups:
            text, place = plural(one.num_groups, "group"), (one.published_mflop, one.amad)
            axes.annotate(text, place, textcoords="offset points", color=MUTED, fontsize=8, **label)
    if choice is not None and choice.amad is not None and choice.published_mflop is not None:
        place = (choice.published_mflop, choice.amad)
        axes.plot(*place, "o", markersize=8, markerfacecolor=PAPER, markeredgecolor=MARK, markeredgewidth=2)
        near = max_amad is not None and 0 <= max_amad - choice.amad < 0.09 * max(amad for _, amad in places)
        label = {"xytext": (10, -2), "va": "top"} if near else {"xytext": (7, 6)}  # clear of the bound
        text = plural(choice.num_groups, "group")
        axes.annotate(text, place, textcoords="offset points", color=MARK, weight="bold", **label)
    if max_amad is not None:
        axes.axhline(max_amad, color=MARK, linewidth=0.8, dashes=(4, 3))
    axes.set_ylim(bottom=0)
    theme.heading(axes, "AMAD of every number of groups")


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
