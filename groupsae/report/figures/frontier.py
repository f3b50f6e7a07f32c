"""The figure of what every candidate is predicted to cost and to give, with what was then measured."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from groupsae.analysis.candidates import PUBLISHED_BOUND, PlanView, view_plan
from groupsae.analysis.run_records import BASELINE, GROUPS, RunRecords, suite_title
from groupsae.analysis.summary import summarize
from groupsae.metrics import change, fixed
from groupsae.records.types.candidate import Candidate
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, GROUP_COLORS, INK, MARK, MUTED, PAPER, Drawing
from groupsae.report.wording import plural

Point = tuple[float, float]
_STEPS = [1, 2, 5, 10]
_BESIDE_NUMBERS = 16.5
"""Points between axes and heading where numbers of groups are written in between."""
_SPREAD_SHOWN = 0.0005
"""Methods that differ by less than this share of FVU at every number of groups are not shown apart."""
_OTHER = {"markersize": 3.2, "markerfacecolor": PAPER, "markeredgecolor": MUTED, "markeredgewidth": 0.8}


def frontier(records: RunRecords) -> Drawing | None:
    """Predicted quality against predicted cost for every candidate of every method, and what was measured."""
    plan = view_plan(records)
    if plan.cost is None or plan.quality is None or len(plan.own) < 2:
        return None
    measured, apart = _measured(records, plan), _apart(plan)
    with theme.canvas(height=3.9) as figure:
        ratios = {"width_ratios": (1.75, 1), "wspace": 0.09} if apart else {}
        panels = figure.subplots(1, 1 + bool(apart), squeeze=False, gridspec_kw=ratios)[0]
        _plane(panels[0], plan, measured)
        if apart:
            _differences(panels[1], plan, apart)
        _legend(figure, plan, bool(measured))
        svg = theme.to_svg(figure, "frontier", "Predicted quality against predicted cost of every candidate")
    return Drawing("frontier", "What every candidate would cost and give", _caption(plan, measured, apart), svg)


def _caption(plan: PlanView, measured: dict[str, Point], apart: dict[str, list[Point]]) -> str:
    cost = "training time" if plan.cost == "seconds" else "FLOPs by our count"
    what = "mean FVU" if plan.quality == "fvu" else "increase of mean FVU over one SAE per layer"
    caption = (
        f"Every candidate of every method: its predicted {cost} and {what} when it is trained alone, all at equal "
        "tokens per SAE. Lower and further left is better. The dark line is the run’s own method. Its band should "
        "hold the result in four of five cases. "
    )
    if plan.quality == "fvu":
        caption += "Predictions come from a pilot: a few small SAEs trained on this model. "
    else:
        caption += (
            "Predictions come from the published suites of pythia-160m and pythia-410m, not from this model: a power "
            "of the mean distance between a layer and its group. "
        )
    if measured:
        caption += "Filled points were measured after training; a thin line leads there from the prediction. "
    if apart:
        caption += "Right: each method beside the run’s own, at the same number of groups. "
    if plan.published:
        caption += (
            f"The published rule takes the fewest groups with AMAD below {PUBLISHED_BOUND:g} by complete linkage. "
        )
    return f"{caption}AMAD is reported but never minimized: splitting off single layers lowers it and helps no other."


def _place(plan: PlanView, candidate: Candidate) -> Point:
    return getattr(candidate, plan.cost), plan.predicted(candidate).value


def _measured(records: RunRecords, plan: PlanView) -> dict[str, Point]:
    """Cost and quality of the trained suites on the axes of the predictions."""
    suites = {suite.name: suite for suite in summarize(records) if suite.mean_fvu is not None}
    places = {}
    for name, suite in suites.items():
        value = suite.mean_fvu
        if plan.quality == "fvu_increase":
            alone = suites[BASELINE].mean_fvu if BASELINE in suites else None
            if name == BASELINE or not alone:
                continue
            value = suite.mean_fvu / alone - 1
        cost = suite.seconds if plan.cost == "seconds" else suite.own_mflop
        if cost is not None:
            places[name] = (cost, value)
    return places


# ---- left: cost and quality


def _plane(axes: Axes, plan: PlanView, measured: dict[str, Point]) -> None:
    own = [_place(plan, one) for one in plan.own]
    bounds = [plan.predicted(one) for one in plan.own]
    costs = [cost for cost, _ in own]
    axes.fill_between(costs, [b.low for b in bounds], [b.high for b in bounds], color=GRAY, alpha=0.16, linewidth=0)
    for one in plan.every[len(plan.own) :]:
        if plan.predicted(one):
            axes.plot(*_place(plan, one), "o", **_OTHER)
    axes.plot(*zip(*own, strict=True), color=INK, linewidth=1.4, marker="o", markersize=3.4)
    _limits(axes, plan, [*costs, *(cost for cost, _ in measured.values())], [height for _, height in measured.values()])
    _ticks(axes, plan, max(costs) - min(costs))
    for _, candidate, color, size in _choices(plan):
        axes.plot(*_place(plan, candidate), "o", zorder=4, **_ring(color, size))
    for name, place in measured.items():
        _mark_measured(axes, plan, name, place)
    theme.heading(axes, "mean FVU" if plan.quality == "fvu" else "increase of mean FVU over one SAE per layer")


def _limits(axes: Axes, plan: PlanView, costs: list[float], heights: list[float]) -> None:
    room = 0.07 * (max(costs) - min(costs) or max(costs))
    axes.set_xlim(max(0.0, min(costs) - room), max(costs) + room)
    low, high = axes.get_ylim()
    low, high = min([low, *heights]), max([high, *heights])
    spare = 0.2 * (high - low)  # for the names of measured points
    low -= spare if any(height < low + spare for height in heights) else 0.0
    high += spare if any(height > high - spare for height in heights) else 0.0
    axes.set_ylim(max(low, 0.0) if plan.quality == "fvu" else low, high)


def _ticks(axes: Axes, plan: PlanView, span: float) -> None:
    """Round ticks below, the numbers of groups above: whatever the method, as many groups cost the same."""
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    if plan.quality == "fvu_increase":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: change(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    axes.set_xlabel("MFLOP per token, by our count")
    if plan.cost == "seconds":
        theme.time_axis(axes, span)
        axes.set_xlabel("training time of one suite")
    above = axes.secondary_xaxis("top")
    above.spines["top"].set_visible(False)
    above.tick_params(length=0, pad=1)
    shown = _thinned(plan.own)
    above.xaxis.set_major_locator(FixedLocator([_place(plan, one)[0] for one in shown]))
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xticklabels([plural(shown[0].num_groups, "group"), *(str(one.num_groups) for one in shown[1:])])


def _thinned(candidates: tuple[Candidate, ...]) -> list[Candidate]:
    """The candidates whose number of groups is written above the axes: the first, the last, and round ones between."""
    most = candidates[-1].num_groups
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if most / step <= 14)
    shown = [one for one in candidates if one.num_groups % step == 0 and most - one.num_groups >= max(1, 0.5 * step)]
    return list({one.num_groups: one for one in (candidates[0], *shown, candidates[-1])}.values())


def _choices(plan: PlanView) -> list[tuple[str, Candidate, str, float]]:
    """The run's choice and the published rule's: who takes it, the candidate, and its ring."""
    chosen, published = plan.choice, plan.published
    same = chosen is not None and published is not None and chosen.partition == published.partition
    who = "this run’s and the published rule’s choice" if same else "this run’s choice"
    rings = [("the published rule’s choice", None if same else published, MUTED, 6.5), (who, chosen, MARK, 8.5)]
    return [(name, one, color, size) for name, one, color, size in rings if one is not None and plan.predicted(one)]


def _ring(color: str, size: float) -> dict[str, object]:
    return {"markersize": size, "markerfacecolor": PAPER, "markeredgecolor": color, "markeredgewidth": 2}


def _mark_measured(axes: Axes, plan: PlanView, suite: str, place: Point) -> None:
    color = GROUP_COLORS[0] if suite == GROUPS else MUTED
    candidate = plan.choice if suite == GROUPS else plan.singletons if suite == BASELINE else None
    above = True
    if candidate is not None and plan.predicted(candidate):
        start = _place(plan, candidate)
        above = place[1] >= start[1]
        axes.plot(*zip(start, place, strict=True), color=color, linewidth=1.0, zorder=3)
    axes.plot(*place, "o", markersize=8, color=color, markeredgewidth=0, zorder=5)
    value = fixed(place[1]) if plan.quality == "fvu" else change(place[1])
    left, right = axes.get_xlim()
    side = "left" if (place[0] - left) / (right - left) < (0.62 if above else 0.3) else "right"
    shift = (5 if side == "left" else -5, 7 if above else -7)
    style = {"color": color, "weight": "bold", "fontsize": 8, "linespacing": 1.25, "zorder": 6, "ha": side}
    text, va = f"{suite_title(suite)},\nmeasured {value}", "bottom" if above else "top"
    axes.annotate(text, place, shift, textcoords="offset points", va=va, **style)


# ---- right: the methods apart


def _apart(plan: PlanView) -> dict[str, list[Point]]:
    """By method, how far its predicted FVU lies from the run's own with as many groups, as a share; none if nowhere."""
    own = {one.num_groups: one.fvu_increase for one in plan.own if one.fvu_increase}
    found = {}
    for name, candidates in plan.methods.items():
        known = [one for one in candidates if one.fvu_increase and one.num_groups in own]
        points = [(one.num_groups, (1 + one.fvu_increase.value) / (1 + own[one.num_groups].value) - 1) for one in known]
        if len(points) > 1 and name != plan.method:
            found[name] = points
    shares = [abs(value) for points in found.values() for _, value in points]
    return found if max(shares, default=0) > _SPREAD_SHOWN else {}


def _differences(axes: Axes, plan: PlanView, apart: dict[str, list[Point]]) -> None:
    styles = theme.method_styles(plan.methods, plan.method)
    axes.axhline(0, color=INK, linewidth=1.4)
    for name, points in apart.items():
        axes.plot(*zip(*points, strict=True), **styles[name])
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: change(value, 1).replace(".0", "")))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=_STEPS))
    axes.set_xlabel("number of groups")
    handles = theme.method_handles(plan.methods, plan.method)
    axes.legend(handles=handles, loc="best", handlelength=2.6, borderpad=0)
    theme.heading(axes, f"predicted FVU beside {theme.short(plan.method)}’s", pad=_BESIDE_NUMBERS)


def _legend(figure: Canvas, plan: PlanView, measured: bool) -> None:
    """What the left panel's marks are; its measured points are named where they are."""
    dot = {"linestyle": "none", "marker": "o"}
    own = f"{theme.short(plan.method)} (this run)"
    handles = [Line2D([], [], color=INK, linewidth=1.4, marker="o", markersize=3.4, label=own)]
    if len(plan.methods) > 1:
        handles.append(Line2D([], [], label="other methods", **dot, **_OTHER))
    for who, candidate, color, size in reversed(_choices(plan)):
        label = f"{who}: {plural(candidate.num_groups, 'group')}"
        handles.append(Line2D([], [], label=label, **dot, **_ring(color, size)))
    if measured:
        style = {"markersize": 7, "color": GROUP_COLORS[0], "markeredgewidth": 0}
        handles.append(Line2D([], [], label="measured", **dot, **style))
    figure.legend(handles=handles, loc="outside upper right", ncols=5, columnspacing=1.6, borderpad=0)
