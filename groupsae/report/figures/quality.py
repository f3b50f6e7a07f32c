"""Figures about the trained SAEs, layer by layer: the groups beside one SAE per layer."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from groupsae.analysis.run_records import BASELINE, GROUPS, RunRecords
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, MUTED, PAPER, RULE, Drawing

ByLayer = Callable[[str, str], dict[str, float]]
"""From a suite and a metric to its values by layer."""


def layer_quality(records: RunRecords) -> Drawing | None:
    """FVU and loss increase of every layer, the groups beside the baseline."""
    panels = {
        "fvu": "fraction of variance unexplained (FVU)",
        "delta_ce": "ΔCE, nats: loss with the layer replaced, less the clean loss",
    }
    svg = layer_panels(records, "quality", panels, "FVU and loss increase per layer")
    caption = (
        "Lower is better. A filled dot is the layer under its group’s SAE, an open one under an SAE of its own, "
        "trained on as many tokens. The line between them is the price of sharing. Shaded columns are groups. A layer "
        "that is a group by itself has one SAE in both suites, so its dots coincide."
    )
    return svg and Drawing("quality", "Reconstruction and loss, layer by layer", caption, svg)


def layer_sparsity(records: RunRecords) -> Drawing | None:
    """Mean active latents and share of dead latents of every layer."""
    panels = {"l0": "mean active latents (L0)", "dead_share": "dead latents, share of the dictionary"}
    svg = layer_panels(records, "sparsity", panels, "L0 and dead latents per layer")
    caption = (
        "SAEs are compared fairly at equal L0. A latent is dead if it fires on no evaluated token of any "
        "layer that its SAE serves, so the layers of a group share one value."
    )
    return svg and Drawing("sparsity", "Sparsity, layer by layer", caption, svg)


def layer_panels(
    records: RunRecords, key: str, titles: dict[str, str], description: str, by_layer: ByLayer | None = None
) -> Markup | None:
    """A panel per metric: every layer's value under both suites, read by `by_layer`, or from the records."""
    read = by_layer or records.by_layer
    values = {metric: [read(suite, metric) for suite in (BASELINE, GROUPS)] for metric in titles}
    shown = [metric for metric in titles if any(values[metric])]
    if not shown:
        return None
    order = theme.in_order(records.hookpoints)
    with theme.canvas(height=0.75 + 2.05 * len(shown)) as figure:
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, metric in zip(panels, shown, strict=True):
            _groups_behind(axes, records, order, named=axes is panels[0])
            _dots(axes, records, order, *values[metric])
            _scale(axes, [one for found in values[metric] for one in found.values()], metric == "dead_share")
            theme.heading(axes, titles[metric], pad=20 if axes is panels[0] and records.chosen else 8)
            axes.set_xlim(-0.6, len(order) - 0.4)
        theme.label_layers(panels[-1], order)
        if all(values[shown[0]]):
            _legend(figure)
        return theme.to_svg(figure, key, description)


def _groups_behind(axes: Axes, records: RunRecords, order: list[str], named: bool) -> None:
    """A shaded column for each group of several layers, with its name above it."""
    if not records.chosen:
        return
    colors = theme.group_colors(records.chosen)
    for group, name in zip(records.chosen.groups, records.chosen.names, strict=True):
        if len(group) == 1:
            continue
        spans = theme.runs(group, order)
        for first, last in spans:
            axes.axvspan(first - 0.42, last + 0.42, color=colors[group], alpha=0.09, linewidth=0)
        text = theme.group_label(name)
        first, last = max(spans, key=lambda span: span[1] - span[0])
        if named and len(text) <= (last - first + 1) * 90 / len(order):
            style = {"ha": "center", "va": "bottom", "color": colors[group], "weight": "bold", "fontsize": 8}
            axes.text((first + last) / 2, 1.02, text, transform=axes.get_xaxis_transform(), **style)


def _dots(
    axes: Axes, records: RunRecords, order: list[str], baseline: dict[str, float], groups: dict[str, float]
) -> None:
    colors = dict(zip(order, theme.layer_colors(records.chosen, order), strict=True))
    size = 7 if len(order) <= 16 else 5
    for place, layer in enumerate(order):
        if layer in baseline and layer in groups:
            axes.plot([place, place], [baseline[layer], groups[layer]], color=colors[layer], linewidth=1.3)
        if layer in groups:
            axes.plot(place, groups[layer], "o", markersize=size, color=colors[layer], markeredgewidth=0)
        if layer in baseline:
            open_dot = {"markerfacecolor": PAPER, "markeredgecolor": MUTED, "markeredgewidth": 1.2}
            axes.plot(place, baseline[layer], "o", markersize=size - 1.4, **open_dot)


def _scale(axes: Axes, values: list[float], shares: bool) -> None:
    low, high = min(values), max(values)
    if shares:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        high = max(high, 0.01)
    if high == low:
        low, high = min(0.0, low), high * 1.6 or 1.0
    axes.set_ylim(min(0.0, low * 1.1), high * 1.1)
    axes.grid(axis="y")
    axes.axhline(0, color=RULE, linewidth=0.6)


def _legend(figure: Canvas) -> None:
    dot = {"linestyle": "none", "marker": "o"}
    handles = [
        Line2D([], [], color=GRAY, markersize=6, markeredgewidth=0, label="the group’s SAE", **dot),
        Line2D([], [], markerfacecolor=PAPER, markeredgecolor=MUTED, markersize=5, label="an SAE of its own", **dot),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, handletextpad=0.2, borderpad=0)
