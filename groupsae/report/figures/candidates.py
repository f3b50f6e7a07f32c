"""Figures about grouping the layers: every number of groups, how far apart its layers are, and the choice."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from groupsae.analysis.candidates import PlanView, view_plan
from groupsae.analysis.run_records import RunRecords
from groupsae.metrics import METRICS, fixed, percent
from groupsae.records.types.candidate import Candidate
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, INK, MARK, MUTED, PAPER, Drawing

_SPREADS = (
    ("largest_diameter", "largest diameter", "dotted", GRAY, 1.4),
    ("size_weighted_amad", "size-weighted AMAD", "solid", GRAY, 1.4),
    ("amad", "AMAD", "solid", INK, 1.8),
)
Curves = dict[str, list[tuple[int, float]]]


def amad_curve(records: RunRecords) -> Drawing | None:
    """AMAD against the number of groups, with the choice marked."""
    plan = view_plan(records)
    if len(plan.own) < 2 or any(one.amad is None for one in plan.own):
        return None
    methods = _methods(plan)
    with theme.canvas(height=3.3) as figure:
        ratios = {"width_ratios": (1.75, 1), "wspace": 0.09} if methods else {}
        panels = figure.subplots(1, 1 + bool(methods), sharey=True, squeeze=False, gridspec_kw=ratios)[0]
        _spreads(panels[0], plan)
        _bound(panels[0], records.max_amad)
        _mark_choice(panels[0], plan.choice)
        figure.legend(loc="outside upper right", ncols=5, handlelength=2.4, columnspacing=1.6, borderpad=0)
        if methods:
            _by_method(panels[1], plan, methods)
            _bound(panels[1], records.max_amad)
        for axes in panels:
            axes.set_ylim(bottom=0)
            axes.set_xlim(0.5, plan.own[-1].num_groups + 0.5)
            axes.set_xlabel("number of groups")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y")
        svg = theme.to_svg(figure, "amad", "Distance inside groups against the number of groups")
    caption = (
        "AMAD is the mean over groups of the largest distance inside a group. A group of one counts as 0, so splitting "
        "off single layers lowers AMAD. The gray lines do not have this weakness: one counts every layer once, the "
        "other shows the widest group only."
    )
    caption += " Right: the AMAD of every method. The lowest AMAD need not be the best." * bool(methods)
    return Drawing("amad", "How many groups", caption + (f" The choice: {plan.why}." if plan.why else ""), svg)


def _spreads(axes: Axes, plan: PlanView) -> None:
    for key, name, dashes, color, width in _SPREADS:
        values = [getattr(one, key) for one in plan.own]
        if None not in values:
            style = {"color": color, "linewidth": width, "linestyle": dashes, "markersize": width * 1.7}
            axes.plot([one.num_groups for one in plan.own], values, marker="o", label=name, **style)
    theme.heading(axes, "distance inside groups")


def _bound(axes: Axes, max_amad: float | None) -> None:
    if max_amad is not None:
        axes.axhline(max_amad, color=MARK, linewidth=0.8, dashes=(4, 3), label=f"bound {max_amad:g}")


def _methods(plan: PlanView) -> Curves:
    """AMAD by the number of groups for each method; none where there is one method, or all agree."""
    found = {
        name: [(one.num_groups, one.amad) for one in candidates if one.amad is not None]
        for name, candidates in plan.methods.items()
    }
    found = {name: points for name, points in found.items() if len(points) > 1}
    return found if len({tuple(points) for points in found.values()}) > 1 else {}


def _by_method(axes: Axes, plan: PlanView, methods: Curves) -> None:
    styles = theme.method_styles(methods, plan.method)
    for name, points in methods.items():
        axes.plot(*zip(*points, strict=True), **styles[name])
    handles = theme.method_handles(methods, plan.method)
    axes.legend(handles=handles, loc="upper right", handlelength=2.6, borderpad=0)
    theme.heading(axes, "AMAD by method")


def _mark_choice(axes: Axes, choice: Candidate | None) -> None:
    if choice is None or choice.amad is None:
        return
    ring = {"markerfacecolor": PAPER, "markeredgecolor": MARK, "markeredgewidth": 2, "linestyle": "none"}
    label = f"the choice: {choice.num_groups} groups, AMAD {fixed(choice.amad)}"
    axes.plot(choice.num_groups, choice.amad, marker="o", markersize=9, zorder=5, label=label, **ring)


# ---- every candidate as a row of bars


def candidate_strip(records: RunRecords) -> Drawing | None:
    """Which layers each candidate puts together: a row each, the chosen one outlined."""
    plan = view_plan(records)
    if not plan.own:
        return None
    by_hand = plan.choice is not None and plan.choice not in plan.own
    rows = sorted([*plan.own, *([plan.choice] if plan.choice and by_hand else [])], key=lambda one: one.num_groups)
    order = theme.in_order(records.hookpoints)
    tall = min(0.24, 8.5 / len(rows))
    with theme.canvas(height=0.95 + tall * len(rows)) as figure:
        axes = figure.subplots()
        for row, candidate in enumerate(rows):
            _bars(axes, records, row, candidate, order, tall > 0.15 and candidate == plan.choice)
            if candidate == plan.choice:
                box = (-0.56, row - 0.48), len(order) + 0.12, 0.96
                axes.add_patch(Rectangle(*box, fill=False, edgecolor=MARK, linewidth=1.4, clip_on=False, zorder=5))
        axes.set_xlim(-0.5, len(order) - 0.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.spines[:].set_visible(False)
        theme.label_layers(axes, order)
        _number_rows(axes, plan, rows, tall)
        svg = theme.to_svg(figure, "candidates", "The groups for every number of groups")
    caption = (
        "Each row has one more group than the row above it. A bar is a group: its layers share one SAE. Small gray "
        "bars are layers with an SAE of their own. "
    )
    if records.chosen:
        caption += (
            "The outlined row was chosen. All figures use its colors; here they show where the other rows merge or "
            "split its groups. "
        )
    caption += "It was made by hand and is shown beside those that the method found. " * by_hand
    caption += "Right: AMAD, and the cost as a share of one SAE per layer (published count)."
    return Drawing("candidates", "Every candidate", caption, svg)


def _bars(axes: Axes, records: RunRecords, row: int, candidate: Candidate, order: list[str], named: bool) -> None:
    chosen = records.chosen is not None and candidate.partition == records.chosen
    colors = dict(zip(order, theme.layer_colors(records.chosen, order), strict=True))
    for group, name in zip(candidate.partition.groups, candidate.partition.names, strict=True):
        tints = [colors[layer] for layer in group]
        alone = len(group) == 1
        color = GRAY if alone else max(set(tints), key=lambda tint: (tints.count(tint), tint != GRAY, tint))
        strength = (0.55 if alone else 0.95) if chosen else (0.28 if alone else 0.5)
        spans = theme.runs(group, order)
        for first, last in spans:
            box = (first - 0.46, row - 0.36), last - first + 0.92, 0.72
            axes.add_patch(Rectangle(*box, facecolor=color, alpha=strength, linewidth=0))
        text = theme.group_label(name)
        first, last = max(spans, key=lambda span: span[1] - span[0])
        if named and not alone and len(text) <= 3 * (last - first + 1) * 14 / len(order) + 1:
            style = {"ha": "center", "va": "center", "color": PAPER, "weight": "bold", "fontsize": 8}
            axes.text((first + last) / 2, row, text, **style)


def _number_rows(axes: Axes, plan: PlanView, rows: list[Candidate], tall: float) -> None:
    """The number of groups at the left of each row, AMAD and relative cost at its right."""
    every = 1 if tall > 0.155 else 2 if tall > 0.1 else 4
    chosen = rows.index(plan.choice) if plan.choice is not None else None
    whole = plan.published_mflop(len(rows[-1].partition.hookpoints))
    heads = [(-0.03, "groups", "right"), (1.05, "AMAD", "center"), *([(1.115, "cost", "center")] if whole else [])]
    for x, text, side in heads:
        axes.text(x, 1.01, text, transform=axes.transAxes, ha=side, va="bottom", color=MUTED, fontsize=8)
    for row, candidate in enumerate(rows):
        is_chosen = row == chosen
        if not is_chosen and (row % every or (chosen is not None and abs(row - chosen) < every)):
            continue
        style = {"va": "center", "fontsize": 8, "transform": axes.get_yaxis_transform()}
        style |= {"color": MARK if is_chosen else INK, "weight": "bold" if is_chosen else "normal"}
        axes.text(-0.03, row, str(candidate.num_groups), ha="right", **style)
        axes.text(
            1.05, row, "–" if candidate.amad is None else METRICS["amad"].text(candidate.amad), ha="center", **style
        )
        cost = plan.published_mflop(candidate.num_groups)
        if whole and cost:
            axes.text(1.115, row, percent(cost / whole), ha="center", **style)
    axes.set_yticks([])
