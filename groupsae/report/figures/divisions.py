"""Figures about dividing the layers: every number of groups, what it holds together, and the choice."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from groupsae.partition import Partition
from groupsae.report.data import Record, RunData, as_groups
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, INK, MARK, MUTED, PAPER, Drawing
from groupsae.report.outlook import look_ahead
from groupsae.report.wording import NONE, fixed, percent

_SPREADS = (
    ("largest_diameter", "largest diameter", "dotted", GRAY, 1.4),
    ("size_weighted_amad", "size-weighted AMAD", "solid", GRAY, 1.4),
    ("amad", "AMAD", "solid", INK, 1.8),
)


def amad_curve(data: RunData) -> Drawing | None:
    """AMAD against the number of groups, with the choice marked."""
    if len(data.candidates) < 2 or any(candidate.get("amad") is None for candidate in data.candidates):
        return None
    numbers = [candidate["num_groups"] for candidate in data.candidates]
    methods = _methods(data)
    with theme.canvas(height=3.3) as figure:
        ratios = {"width_ratios": (1.75, 1), "wspace": 0.09} if methods else {}
        panels = figure.subplots(1, 1 + bool(methods), sharey=True, squeeze=False, gridspec_kw=ratios)[0]
        axes = panels[0]
        for key, name, dashes, color, width in _SPREADS:
            values = [candidate.get(key) for candidate in data.candidates]
            if all(value is not None for value in values):
                style = {"color": color, "linewidth": width, "linestyle": dashes, "markersize": width * 1.7}
                axes.plot(numbers, values, marker="o", label=name, **style)
        if data.max_amad is not None:
            axes.axhline(data.max_amad, color=MARK, linewidth=0.8, dashes=(4, 3), label=f"bound {data.max_amad:g}")
        _mark_choice(axes, data)
        figure.legend(loc="outside upper right", ncols=5, handlelength=2.4, columnspacing=1.6, borderpad=0)
        theme.heading(axes, "distance inside groups")
        if methods:
            _by_method(panels[1], data, methods)
        for each in panels:
            each.set_ylim(bottom=0)
            each.set_xlim(0.5, numbers[-1] + 0.5)
            each.set_xlabel("number of groups")
            each.xaxis.get_major_locator().set_params(integer=True)
            each.grid(axis="y")
        svg = theme.to_svg(figure, "amad", "Distance inside groups against the number of groups")
    why = (data.plan.get("choice") or {}).get("why")
    caption = (
        "AMAD is the mean over groups of the largest distance inside a group. A group of one counts 0, so AMAD is "
        "easily lowered by splitting off single layers. The gray lines are harder to please: one counts every layer "
        "alike, the other only the widest group."
    )
    if methods:
        caption += " Right, the AMAD of every method: the lowest need not be the best."
    return Drawing("amad", "How many groups", caption + (f" The choice: {why}." if why else ""), svg)


def _methods(data: RunData) -> dict[str, list[tuple[int, float]]]:
    """AMAD by the number of groups for each method; none where there is one method, or all agree."""
    found = {
        name: [(offer.num_groups, offer.amad) for offer in offers if offer.amad is not None]
        for name, offers in look_ahead(data).methods.items()
    }
    found = {name: points for name, points in found.items() if len(points) > 1}
    return found if len({tuple(points) for points in found.values()}) > 1 else {}


def _by_method(axes: Axes, data: RunData, methods: dict[str, list[tuple[int, float]]]) -> None:
    own = look_ahead(data).method
    styles = theme.method_styles(methods, own)
    for name, points in methods.items():
        axes.plot(*zip(*points, strict=True), **styles[name])
    if data.max_amad is not None:
        axes.axhline(data.max_amad, color=MARK, linewidth=0.8, dashes=(4, 3))
    axes.legend(handles=theme.method_handles(methods, own), loc="upper right", handlelength=2.6, borderpad=0)
    theme.heading(axes, "AMAD by method")


def _mark_choice(axes: Axes, data: RunData) -> None:
    choice = data.choice
    if choice is None or choice.get("amad") is None:
        return
    point = (choice["num_groups"], choice["amad"])
    ring = {"markerfacecolor": PAPER, "markeredgecolor": MARK, "markeredgewidth": 2, "linestyle": "none"}
    label = f"the choice: {choice['num_groups']} groups, AMAD {fixed(choice['amad'])}"
    axes.plot(*point, marker="o", markersize=9, zorder=5, label=label, **ring)


def division_strip(data: RunData) -> Drawing | None:
    """How each number of groups divides the layers: a row each, the chosen one outlined."""
    if not data.candidates:
        return None
    order = theme.in_order(data.hookpoints)
    rows = _rows(data)
    tall = min(0.24, 8.5 / len(rows))
    with theme.canvas(height=0.95 + tall * len(rows)) as figure:
        axes = figure.subplots()
        for row, candidate in enumerate(rows):
            _division(axes, data, row, candidate, order, tall)
        axes.set_xlim(-0.5, len(order) - 0.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.spines[:].set_visible(False)
        theme.label_layers(axes, order)
        _number_rows(axes, data, rows, tall)
        svg = theme.to_svg(figure, "divisions", "The groups for every number of groups")
    caption = (
        "Each row divides the layers, left to right, into one more group than the row above it. A bar is a group: its "
        "layers share one SAE; small gray bars are layers on their own. "
    )
    if data.chosen:
        caption += (
            "The outlined row was chosen. Its colors are used in all figures; here they show where the other rows "
            "merge or split its groups. "
        )
    if data.choice is not None and data.choice not in data.candidates:
        caption += "It was made by hand and stands beside those that the method found. "
    caption += "Right: AMAD, and the cost as a share of one SAE per layer."
    return Drawing("divisions", "Every division that was considered", caption, svg)


def _rows(data: RunData) -> list[Record]:
    """The candidates, and a division made by hand after those with as many groups."""
    rows = list(data.candidates)
    if data.choice is not None and data.choice not in rows:
        rows.append(data.choice)
    return sorted(rows, key=lambda row: row["num_groups"])


def _division(axes: Axes, data: RunData, row: int, candidate: Record, order: list[str], tall: float) -> None:
    chosen = candidate == data.choice
    groups = Partition(as_groups(candidate["groups"])).groups
    colors = dict(zip(order, theme.layer_colors(data.chosen, order), strict=True))
    for group in groups:
        tints = [colors[name] for name in group]
        color = max(set(tints), key=lambda tint: (tints.count(tint), tint != GRAY, tint)) if len(group) > 1 else GRAY
        spans = theme.runs(group, order)
        for first, last in spans:
            box = (first - 0.46, row - 0.36), last - first + 0.92, 0.72
            axes.add_patch(Rectangle(*box, facecolor=color, alpha=_strength(chosen, len(group)), linewidth=0))
        if chosen and tall > 0.15 and len(group) > 1:
            text = theme.group_label(data.chosen.names[data.chosen.groups.index(group)])
            first, last = max(spans, key=lambda span: span[1] - span[0])
            if len(text) <= 3 * (last - first + 1) * 14 / len(order) + 1:
                axes.text(
                    (first + last) / 2, row, text, ha="center", va="center", color=PAPER, weight="bold", fontsize=8
                )
    if chosen:
        box = (-0.56, row - 0.48), len(order) + 0.12, 0.96
        axes.add_patch(Rectangle(*box, fill=False, edgecolor=MARK, linewidth=1.4, clip_on=False, zorder=5))


def _strength(chosen: bool, size: int) -> float:
    return (0.95 if size > 1 else 0.55) if chosen else (0.5 if size > 1 else 0.28)


def _number_rows(axes: Axes, data: RunData, rows: list[Record], tall: float) -> None:
    """The number of groups at the left of each row, AMAD and relative cost at its right."""
    every = 1 if tall > 0.155 else 2 if tall > 0.1 else 4
    chosen = rows.index(data.choice) if data.choice is not None else None
    costs = [(candidate.get("mflop_per_token") or {}).get("total") for candidate in rows]
    whole = data.cost(Partition.singletons(data.hookpoints))
    columns = [(1.05, "AMAD"), (1.115, "cost")]
    for x, text in columns if whole else columns[:1]:
        axes.text(x, 1.01, text, transform=axes.transAxes, ha="center", va="bottom", color=MUTED, fontsize=8)
    axes.text(-0.03, 1.01, "groups", transform=axes.transAxes, ha="right", va="bottom", color=MUTED, fontsize=8)
    place = axes.get_yaxis_transform()
    for row, candidate in enumerate(rows):
        is_chosen = row == chosen
        near = chosen is not None and abs(row - chosen) < every
        if not is_chosen and (near or row % every):
            continue
        style = {"va": "center", "fontsize": 8, "transform": place, "color": MARK if is_chosen else INK}
        style["weight"] = "bold" if is_chosen else "normal"
        axes.text(-0.03, row, str(candidate["num_groups"]), ha="right", **style)
        amad = candidate.get("amad")
        axes.text(1.05, row, NONE if amad is None else f"{amad:.3f}", ha="center", **style)
        if whole and costs[row]:
            axes.text(1.115, row, percent(costs[row] / whole["total"]), ha="center", **style)
    axes.set_yticks([])
