"""The figure of what every partition is predicted to cost and to give, with what was then measured."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullLocator

from groupsae.report.data import BASELINE, GROUPS, RunData
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, GROUP_COLORS, INK, MARK, MUTED, PAPER, Drawing
from groupsae.report.outlook import PAPERS_BOUND, Interval, Offer, Outlook, look_ahead
from groupsae.report.summary import summarize_data
from groupsae.report.wording import duration, fixed, plural, share

Point = tuple[float, float]
_ROUND_TIMES = tuple(unit * step for unit in (1, 60, 3600) for step in (1, 2, 5, 10, 20, 30))
_STEPS = [1, 2, 5, 10]
_BESIDE_NUMBERS = 16.5
"""Points between axes and heading, as where numbers of groups stand in between."""
_SPREAD_SHOWN = 0.0005
"""Methods that differ by less than this share of FVU at every number of groups are not shown apart."""


def frontier(data: RunData) -> Drawing | None:
    """Predicted quality against predicted cost for every partition of every method, and what was measured."""
    outlook = look_ahead(data)
    if outlook.cost is None or outlook.quality is None or len(outlook.own) < 2:
        return None
    measured = _measured(data, outlook)
    apart = _apart(outlook)
    with theme.canvas(height=3.9) as figure:
        ratios = {"width_ratios": (1.75, 1), "wspace": 0.09} if apart else {}
        panels = figure.subplots(1, 1 + bool(apart), squeeze=False, gridspec_kw=ratios)[0]
        _plane(panels[0], outlook, measured)
        if apart:
            _differences(panels[1], outlook, apart)
        _legend(figure, outlook, measured)
        svg = theme.to_svg(figure, "frontier", "Predicted quality against predicted cost of every division")
    return Drawing("frontier", "What every division would cost and give", _caption(data, outlook, measured, apart), svg)


def _caption(data: RunData, outlook: Outlook, measured: dict[str, Point], apart: dict[str, list[Point]]) -> str:
    cost = "training time" if outlook.cost == "seconds" else "cost by our own count"
    what = "mean FVU" if outlook.quality == "fvu" else "increase of mean FVU over one SAE per layer"
    caption = (
        f"Every division of every method, by the {cost} and the {what} predicted for it when it is trained alone: "
        "lower and further left is better. The dark line is the run’s own method; its band should hold the outcome in "
        "four of five cases. "
    )
    if outlook.quality == "fvu":
        caption += "Predictions come from a pilot: a few small SAEs trained on this model. "
    else:
        caption += (
            "Predictions come from the published suites of pythia-160m and pythia-410m, not from this model: a power "
            "of the mean distance between a layer and its group. "
        )
    if measured:
        caption += "Filled points were measured after training; a thin line leads there from the prediction. "
    if apart:
        caption += "Right, each method’s divisions beside the run’s own with as many groups. "
    if outlook.papers:
        caption += f"The paper’s rule takes the fewest groups with AMAD below {PAPERS_BOUND:g} by complete linkage. "
    return f"{caption}AMAD is reported but never minimized: splitting off single layers lowers it and helps no other."


# ---- left: cost and quality


def _plane(axes: Axes, outlook: Outlook, measured: dict[str, Point]) -> None:
    own = [_place(outlook, offer) for offer in outlook.own]
    bounds = [_quality(outlook, offer) for offer in outlook.own]
    costs = [cost for cost, _ in own]
    axes.fill_between(costs, [b.low for b in bounds], [b.high for b in bounds], color=GRAY, alpha=0.16, linewidth=0)
    for name, offers in outlook.methods.items():
        if name != outlook.method:
            shown = [offer for offer in offers if getattr(offer, outlook.quality)]
            for offer in shown:
                dot = {"markersize": 3.2, "markerfacecolor": PAPER, "markeredgecolor": MUTED, "markeredgewidth": 0.8}
                axes.plot(*_place(outlook, offer), "o", **dot)
    axes.plot(*zip(*own, strict=True), color=INK, linewidth=1.4, marker="o", markersize=3.4)
    _scales(axes, outlook, measured)
    _mark_choices(axes, outlook)
    _mark_measured(axes, outlook, measured)
    theme.heading(axes, "mean FVU" if outlook.quality == "fvu" else "increase of mean FVU over one SAE per layer")


def _scales(axes: Axes, outlook: Outlook, measured: dict[str, Point]) -> None:
    """Round ticks below, the numbers of groups above: whatever the method, as many groups cost the same."""
    costs = [_place(outlook, offer)[0] for offer in outlook.own] + [cost for cost, _ in measured.values()]
    room = 0.07 * (max(costs) - min(costs) or max(costs))
    axes.set_xlim(max(0.0, min(costs) - room), max(costs) + room)
    heights = [height for _, height in measured.values()]
    low, high = axes.get_ylim()
    low, high = min([low, *heights]), max([high, *heights])
    spare = 0.2 * (high - low)  # for the names of measured points
    low -= spare if any(height < low + spare for height in heights) else 0.0
    high += spare if any(height > high - spare for height in heights) else 0.0
    axes.set_ylim(max(low, 0.0) if outlook.quality == "fvu" else low, high)
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    if outlook.quality == "increase":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: share(value)))
    if outlook.cost == "seconds":
        span = max(costs) - min(costs)
        step = next((step for step in _ROUND_TIMES if span / step <= 6), None)
        axes.xaxis.set_major_locator(MultipleLocator(step) if step else MaxNLocator(5, steps=_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds) if seconds else "0"))
        axes.set_xlabel("training time of one suite")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        axes.set_xlabel("MFLOP per token, by our own count")
    above = axes.secondary_xaxis("top")
    above.spines["top"].set_visible(False)
    above.tick_params(length=0, pad=1)
    shown = _thinned(outlook.own)
    above.xaxis.set_major_locator(FixedLocator([_place(outlook, offer)[0] for offer in shown]))
    above.xaxis.set_minor_locator(NullLocator())
    labels = [str(offer.num_groups) for offer in shown]
    labels[0] = plural(shown[0].num_groups, "group")
    above.set_xticklabels(labels)


def _thinned(offers: tuple[Offer, ...]) -> list[Offer]:
    """The offers whose number of groups is written above the axes: the first, the last, and round ones between."""
    most = offers[-1].num_groups
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if most / step <= 14)
    shown = [o for o in offers if o.num_groups % step == 0 and most - o.num_groups >= max(1, 0.5 * step)]
    return list({o.num_groups: o for o in (offers[0], *shown, offers[-1])}.values())


def _mark_choices(axes: Axes, outlook: Outlook) -> None:
    """A ring around the run's choice, and a smaller gray one around the paper's."""
    for offer, color, mark in ((outlook.papers, MUTED, 6.5), (outlook.chosen, MARK, 8.5)):
        if offer is not None and getattr(offer, outlook.quality):
            ring = {"markerfacecolor": PAPER, "markeredgecolor": color, "markeredgewidth": 2, "zorder": 4}
            axes.plot(*_place(outlook, offer), "o", markersize=mark, **ring)


def _label(axes: Axes, place: Point, text: str, color: str, above: bool) -> None:
    """Text beside a point: to its upper right, where a falling line leaves room, or to its lower left."""
    left, right = axes.get_xlim()
    across = (place[0] - left) / (right - left)
    side = "left" if across < (0.62 if above else 0.3) else "right"
    shift = (5 if side == "left" else -5, 7 if above else -7)
    style = {"color": color, "weight": "bold", "fontsize": 8, "linespacing": 1.25, "zorder": 6}
    va = "bottom" if above else "top"
    axes.annotate(text, place, shift, textcoords="offset points", ha=side, va=va, **style)


def _mark_measured(axes: Axes, outlook: Outlook, measured: dict[str, Point]) -> None:
    predicted = {GROUPS: outlook.chosen, BASELINE: outlook.singletons()}
    for suite, place in measured.items():
        color = GROUP_COLORS[0] if suite == GROUPS else MUTED
        offer = predicted.get(suite)
        above = True
        if offer is not None and getattr(offer, outlook.quality):
            start = _place(outlook, offer)
            above = place[1] >= start[1]
            axes.plot(*zip(start, place, strict=True), color=color, linewidth=1.0, zorder=3)
        axes.plot(*place, "o", markersize=8, color=color, markeredgewidth=0, zorder=5)
        name = "groups" if suite == GROUPS else "one SAE per layer"
        value = fixed(place[1]) if outlook.quality == "fvu" else share(place[1])
        _label(axes, place, f"{name},\nmeasured {value}", color, above)


def _measured(data: RunData, outlook: Outlook) -> dict[str, Point]:
    """Cost and quality of the trained suites on the axes of the predictions."""
    suites = {suite.name: suite for suite in summarize_data(data) if suite.mean_fvu is not None}
    places = {}
    for name, suite in suites.items():
        value = suite.mean_fvu
        if outlook.quality == "increase":
            alone = suites[BASELINE].mean_fvu if BASELINE in suites else None
            if name == BASELINE or not alone:
                continue
            value = suite.mean_fvu / alone - 1
        alike = (offer.own_mflop for offer in outlook.everything if offer.num_groups == suite.num_saes)
        cost = suite.seconds if outlook.cost == "seconds" else next(alike, None)
        if cost is not None:
            places[name] = (cost, value)
    return places


def _place(outlook: Outlook, offer: Offer) -> Point:
    return getattr(offer, outlook.cost), _quality(outlook, offer).value


def _quality(outlook: Outlook, offer: Offer) -> Interval:
    return getattr(offer, outlook.quality)


# ---- right: the methods apart


def _apart(outlook: Outlook) -> dict[str, list[Point]]:
    """By method, how far its predicted FVU lies from the run's own with as many groups, as a share; none if nowhere."""
    own = {offer.num_groups: offer for offer in outlook.own if offer.increase}
    found = {}
    for name, offers in outlook.methods.items():
        pairs = [(own[o.num_groups].increase, o) for o in offers if o.increase and o.num_groups in own]
        points = [(o.num_groups, (1 + o.increase.value) / (1 + base.value) - 1) for base, o in pairs]
        if len(points) > 1 and name != outlook.method:
            found[name] = points
    shares = [abs(value) for points in found.values() for _, value in points]
    return found if max(shares, default=0) > _SPREAD_SHOWN else {}


def _differences(axes: Axes, outlook: Outlook, apart: dict[str, list[Point]]) -> None:
    styles = theme.method_styles(outlook.methods, outlook.method)
    axes.axhline(0, color=INK, linewidth=1.4)
    for name, points in apart.items():
        axes.plot(*zip(*points, strict=True), **styles[name])
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: share(value, 1).replace(".0", "")))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=_STEPS))
    axes.set_xlabel("number of groups")
    handles = theme.method_handles(outlook.methods, outlook.method)
    axes.legend(handles=handles, loc="best", handlelength=2.6, borderpad=0)
    theme.heading(axes, f"predicted FVU beside {theme.short(outlook.method)}’s", pad=_BESIDE_NUMBERS)


def _legend(figure: Canvas, outlook: Outlook, measured: dict[str, Point]) -> None:
    """What the left panel's marks are; its measured points are named where they are."""
    handles = [Line2D([], [], color=INK, linewidth=1.4, marker="o", markersize=3.4, label=_own(outlook))]
    if len(outlook.methods) > 1:
        dot = {"markersize": 3.2, "markerfacecolor": PAPER, "markeredgecolor": MUTED, "markeredgewidth": 0.8}
        handles.append(Line2D([], [], linestyle="none", marker="o", label="other methods", **dot))
    chosen, papers = outlook.chosen, outlook.papers
    same = chosen is not None and papers is not None and chosen.partition == papers.partition
    rings = [("this run’s and the paper’s choice" if same else "this run’s choice", chosen, MARK, 8.5)]
    rings += [] if same else [("the paper’s choice", papers, MUTED, 6.5)]
    for who, offer, color, mark in rings:
        if offer is not None and getattr(offer, outlook.quality):
            ring = {"markersize": mark, "markerfacecolor": PAPER, "markeredgecolor": color, "markeredgewidth": 2}
            label = f"{who}: {plural(offer.num_groups, 'group')}"
            handles.append(Line2D([], [], linestyle="none", marker="o", label=label, **ring))
    if measured:
        dot = {"markersize": 7, "color": GROUP_COLORS[0], "markeredgewidth": 0}
        handles.append(Line2D([], [], linestyle="none", marker="o", label="measured", **dot))
    figure.legend(handles=handles, loc="outside upper right", ncols=5, columnspacing=1.6, borderpad=0)


def _own(outlook: Outlook) -> str:
    return f"{theme.short(outlook.method)} (this run)"
