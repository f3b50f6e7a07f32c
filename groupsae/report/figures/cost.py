"""Figures about cost: what every number of groups would cost, what was trained, and where the time went."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from groupsae.report.data import BASELINE, GROUPS, Record, RunData
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, GROUP_COLORS, INK, MARK, MUTED, PAPER, RULE, Drawing
from groupsae.report.outlook import look_ahead
from groupsae.report.summary import SuiteSummary, summarize_data
from groupsae.report.wording import duration, fixed, plural

SUITE_NAMES = {BASELINE: "one SAE per layer", GROUPS: "groups"}
STAGE_NAMES = {
    "tokens": "tokenize the text",
    "distances": "measure distances",
    "group": "divide into groups",
    "plan": "plan the cost",
    "train": "train",
    "eval": "evaluate",
    "report": "write this page",
}
_MEASURES = {"mean_fvu": "mean FVU", "mean_delta_ce": "mean ΔCE, nats"}
_ROUND_TIMES = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)


def cost_and_quality(data: RunData) -> Drawing | None:
    """Distance inside groups, and measured quality, against cost."""
    points = [
        (candidate["mflop_per_token"]["total"], candidate["amad"], candidate["num_groups"])
        for candidate in data.candidates
        if candidate.get("mflop_per_token") and candidate.get("amad") is not None
    ]
    summaries = [suite for suite in summarize_data(data) if suite.mflop_per_token is not None]
    measures = [key for key in _MEASURES if any(getattr(suite, key) is not None for suite in summaries)]
    has_frontier = len(points) > 1 and look_ahead(data).quality is None  # else the plan's own figure shows more
    if not has_frontier and not measures:
        return None
    costs = [cost for cost, _, _ in points]
    with theme.canvas(height=2.9) as figure:
        panels = figure.subplots(1, has_frontier + len(measures), sharex=True, squeeze=False)[0]
        panels[0].set_xlim(0, 1.1 * max(costs + [suite.mflop_per_token for suite in summaries]))
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlabel("MFLOP per token")
            axes.grid(axis="y")
        if has_frontier:
            _frontier(panels[0], data, points)
        for axes, measure in zip(panels[has_frontier:], measures, strict=True):
            _quality(axes, summaries, measure, costs)
        svg = theme.to_svg(figure, "cost", "Cost against distance inside groups and against quality")
    caption = "Cost counts one forward pass of the language model and one dense SAE step per group (C = A + T·G)."
    if has_frontier:
        caption += " Left, every number of groups that was considered: each further group adds the same cost."
    if measures:
        caption += " Mean FVU and ΔCE are measured, lower being better; ticks on their axes are the costs of the rest."
    return Drawing("cost", "Cost against quality", caption, svg)


def _frontier(axes: Axes, data: RunData, points: list[tuple[float, float, int]]) -> None:
    costs, amads, _ = zip(*points, strict=True)
    axes.plot(costs, amads, color=GRAY, linewidth=1.2, marker="o", markersize=3.5, markerfacecolor=GRAY)
    choice = data.choice or {}
    for (cost, amad, number), place in zip((points[0], points[-1]), _END_LABELS, strict=True):
        if number != choice.get("num_groups"):
            text = plural(number, "group")
            axes.annotate(text, (cost, amad), textcoords="offset points", color=MUTED, fontsize=8, **place)
    if choice.get("amad") is not None and choice.get("mflop_per_token"):
        _ring(axes, data, choice, max(amads))
    if data.max_amad is not None:
        axes.axhline(data.max_amad, color=MARK, linewidth=0.8, dashes=(4, 3))
    axes.set_ylim(bottom=0)
    theme.heading(axes, "AMAD of every number of groups")


_END_LABELS = ({"xytext": (6, 3), "ha": "left"}, {"xytext": (0, 9), "ha": "center"})


def _ring(axes: Axes, data: RunData, choice: Record, top: float) -> None:
    """Marks the chosen division; its label keeps clear of the bound."""
    cost, amad = choice["mflop_per_token"]["total"], choice["amad"]
    axes.plot(cost, amad, "o", markersize=8, markerfacecolor=PAPER, markeredgecolor=MARK, markeredgewidth=2)
    near_bound = data.max_amad is not None and 0 <= data.max_amad - amad < 0.09 * top
    place = {"xytext": (10, -2), "va": "top"} if near_bound else {"xytext": (7, 6)}
    text = plural(choice["num_groups"], "group")
    axes.annotate(text, (cost, amad), textcoords="offset points", color=MARK, weight="bold", **place)


def _quality(axes: Axes, summaries: list[SuiteSummary], measure: str, costs: list[float]) -> None:
    known = [suite for suite in summaries if getattr(suite, measure) is not None]
    places = [(suite.mflop_per_token, getattr(suite, measure)) for suite in known]
    axes.plot(*zip(*places, strict=True), color=RULE, linewidth=1.2)
    for suite, (cost, value) in zip(known, places, strict=True):
        is_groups = suite.name == GROUPS
        color = GROUP_COLORS[0] if is_groups else MUTED
        face = color if is_groups else PAPER
        axes.plot(cost, value, "o", markersize=8, markerfacecolor=face, markeredgecolor=color, markeredgewidth=1.6)
        side, shift = ("left", -4) if cost < 0.6 * axes.get_xlim()[1] else ("right", 4)
        above = len(places) == 1 or value > min(other for _, other in places)
        text = f"{SUITE_NAMES.get(suite.name, theme.short(suite.name))}\n{fixed(value)}"
        axes.annotate(
            text,
            (cost, value),
            (shift, 9 if above else -9),
            textcoords="offset points",
            ha=side,
            va="bottom" if above else "top",
            color=color,
            weight="bold",
        )
    axes.vlines(costs, 0, 0.025, transform=axes.get_xaxis_transform(), color=GRAY, linewidth=0.7)
    values = [value for _, value in places]
    axes.set_ylim(min(0.0, 1.2 * min(values)), 1.45 * max(max(values), 1e-9))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    theme.heading(axes, _MEASURES[measure])


def stage_seconds(data: RunData) -> Drawing | None:
    """How long each stage took, training divided into its parts."""
    stages = data.manifest.get("stages", {})
    rows = [(STAGE_NAMES[stage], stages[stage]["seconds"], INK) for stage in STAGE_NAMES if stage in stages]
    if data.train:
        parts = [(f"   {part}", seconds, GRAY) for part, seconds in data.train["seconds"].items()]
        where = next((index for index, row in enumerate(rows) if row[0] == STAGE_NAMES["train"]), len(rows) - 1)
        rows[where + 1 : where + 1] = parts
    if not rows:
        return None
    longest = max(seconds for _, seconds, _ in rows) or 1.0
    with theme.canvas(height=0.55 + 0.24 * len(rows)) as figure:
        axes = figure.subplots()
        for row, (name, seconds, color) in enumerate(rows):
            axes.barh(row, seconds, height=0.62, color=color)
            axes.annotate(duration(seconds), (seconds, row), (4, 0), textcoords="offset points", va="center")
            axes.annotate(
                theme.short(name),
                (0, row),
                (-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                color=INK if color == INK else MUTED,
            )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, longest * 1.12)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        step = next((step for step in _ROUND_TIMES if longest / step <= 7), longest / 5)
        axes.xaxis.set_major_locator(MultipleLocator(step))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds) if seconds else "0"))
        axes.grid(axis="x")
        svg = theme.to_svg(figure, "seconds", "Time per stage")
    caption = "Wall-clock time of each stage."
    if data.train:
        caption += " Training is divided below its bar, in gray: one pass of the language model feeds every SAE."
    return Drawing("seconds", "Where the time went", caption, svg)
