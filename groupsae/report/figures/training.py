"""The figure of training: error and loss of every SAE over the tokens it has seen."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from groupsae.analysis.run_records import RunRecords
from groupsae.metrics import count
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, MUTED, Drawing

_MOST_POINTS = 140
_MOST_LABELS = 8
_GAP = 0.055
_DASHES = ("solid", (0, (4, 1.5)), (0, (1.2, 1.5)), (0, (6, 1.5, 1.2, 1.5)))


def training_curves(records: RunRecords) -> Drawing | None:
    """FVU and loss over tokens for every SAE."""
    if not records.log:
        return None
    colors = _colors(records)
    many = len(colors) > _MOST_LABELS
    with theme.canvas(height=3.3 + (0.25 + 0.17 * math.ceil(len(colors) / 8) if many else 0)) as figure:
        panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.1})
        for axes, (metric, title) in zip(panels, (("fvu", "FVU"), ("loss", "training loss")), strict=True):
            ends = _lines(axes, records, metric, colors)
            _log_axis(axes)
            if ends and not many:
                _name_ends(axes, ends, colors)
            axes.set_xlim(left=0)
            axes.set_xlabel("tokens seen by each SAE")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: count(tokens)))
            axes.xaxis.get_major_locator().set_params(nbins=4)
            axes.grid(axis="y")
            theme.heading(axes, title)
        if many:
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=8, handlelength=2.6)
        svg = theme.to_svg(figure, "curves", "FVU and loss over tokens")
    caption = (
        "Measured on the training text, one line per SAE, on a logarithmic scale. Colored: SAEs that serve a group. "
        "Gray: SAEs of a single layer."
    )
    return Drawing("curves", "Training", caption, svg)


def _colors(records: RunRecords) -> dict[str, str]:
    """A color for each group of several layers, by its name."""
    if not records.chosen:
        return {}
    colors = theme.group_colors(records.chosen)
    named = zip(records.chosen.groups, records.chosen.names, strict=True)
    return {name: colors[group] for group, name in named if len(group) > 1}


def _lines(axes: Axes, records: RunRecords, metric: str, colors: dict[str, str]) -> dict[str, float]:
    """Draw a line per SAE, single layers first and behind; return where the groups' lines end."""
    place = {name: index for index, name in enumerate(colors)}
    names = sorted({name for line in records.log for name in line.groups}, key=lambda name: (place.get(name, -1), name))
    step = max(1, math.ceil(len(records.log) / _MOST_POINTS))
    lines = records.log[::-1][::step][::-1]  # counted from the end: the last point is always there
    ends = {}
    for name in names:
        points = [(line.tokens, getattr(line.groups[name], metric)) for line in lines if name in line.groups]
        points = [(tokens, value) for tokens, value in points if value > 0]
        if not points:
            continue
        marker = "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, **_stroke(name, colors))
        if name in colors:
            ends[name] = points[-1][1]
    return ends


def _stroke(name: str, colors: dict[str, str]) -> dict[str, object]:
    """How a line is drawn: a group in its color, dashed once the palette is used up."""
    if name not in colors:
        return {"color": GRAY, "linewidth": 0.7, "alpha": 0.7}
    cycle = list(colors).index(name) // len(theme.GROUP_COLORS)
    dashes = _DASHES[cycle % len(_DASHES)]
    return {"color": colors[name], "linewidth": 1.7, "linestyle": dashes, "label": theme.group_label(name)}


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name_ends(axes: Axes, ends: dict[str, float], colors: dict[str, str]) -> None:
    """Groups' names at the ends of their lines, moved apart where they would touch."""
    low, high = map(math.log, axes.get_ylim())
    wanted = sorted(((math.log(value) - low) / (high - low), name) for name, value in ends.items())
    places = [place for place, _ in wanted]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + _GAP)
    over = max(0.0, places[-1] - 0.99)
    for index in reversed(range(len(places))):
        limit = places[index + 1] - _GAP if index + 1 < len(places) else places[-1] - over
        places[index] = min(places[index], limit)
    style = {"textcoords": "offset points", "va": "center", "weight": "bold", "fontsize": 8}
    for place, (_, name) in zip(places, wanted, strict=True):
        color = colors.get(name, MUTED)
        axes.annotate(theme.group_label(name), (1, place), (5, 0), xycoords="axes fraction", color=color, **style)
