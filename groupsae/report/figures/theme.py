"""How every figure looks, and how it becomes SVG that a page can hold.

Colors are drawn as fixed values and replaced by CSS variables, so that one drawing serves light,
dark and paper. Text stays text. Names of groups and layers are data: matplotlib escapes them, and
reads no mathematics in them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator

from groupsae.hookpoints import natural_key
from groupsae.partition import Group, Partition

INK, MUTED, RULE, GRAY, PAPER, MARK = "#1f2421", "#5d6661", "#d9dcd6", "#8b938e", "#fffefb", "#b3261f"
GROUP_COLORS = ("#1f66a8", "#c4500c", "#0f8064", "#a5478b", "#8a6a02", "#2786ab")
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", GRAY: "gray", PAPER: "paper", MARK: "mark"} | {
    color: f"group-{index}" for index, color in enumerate(GROUP_COLORS, start=1)
}
WIDTH = 9.2
"""Inches; the page shows a figure about 1.4 times as large."""
_MOST_TICKS = 33
_LONGEST_LABEL = 26

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "groupsae",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Drawing:
    """One figure of the report: a key for its ids, its SVG, and what a reader is told."""

    key: str
    title: str
    caption: str
    svg: Markup


@contextmanager
def canvas(height: float, width: float = WIDTH) -> Iterator[Canvas]:
    """An empty figure in the report's style; the style ends with the block."""
    with matplotlib.rc_context(_STYLE):
        figure = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.04, hspace=0.03)
        yield figure


def to_svg(figure: Canvas, key: str, description: str) -> Markup:
    """The figure as an inline SVG element: ids begin with `key`, colors are CSS variables, no header or date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{key}-", svg)
    svg = re.sub(r"\b(fill|stroke): ?(#[0-9a-f]{6})", _as_variable, svg)
    svg = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])
    head = f'<svg class="drawing" role="img" aria-label="{Markup.escape(description)}" '
    head += f'style="max-width: {width * 1.45:.0f}px; min-width: {min(width * 0.95, 640):.0f}px"'
    svg = re.sub(r'<svg\b(.*?) width="[^"]*"', lambda found: head + found[1], svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) id="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.strip())


def _as_variable(found: re.Match[str]) -> str:
    variable = _VARIABLES.get(found[2])
    return f"{found[1]}: var(--{variable})" if variable else found[0]


# ---- labels


def short(name: str) -> str:
    """A name that fits beside an axis; its middle is left out if it is too long."""
    half = (_LONGEST_LABEL - 1) // 2
    return name if len(name) <= _LONGEST_LABEL else f"{name[:half]}…{name[-half:]}"


def layer_labels(hookpoints: Sequence[str]) -> tuple[list[str], str]:
    """Tick labels for layers and the axis' title: bare numbers where the paths differ in one number only."""
    parsed = [re.fullmatch(r"(\D*)(\d+)(.*)", name) for name in hookpoints]
    if hookpoints and all(parsed) and len({(found[1], found[3]) for found in parsed}) == 1:
        pattern = f"{parsed[0][1]}*{parsed[0][3]}"
        return [found[2] for found in parsed], f"layer ({short(pattern)})"
    return [short(name) for name in hookpoints], "hookpoint"


def are_short(hookpoints: Sequence[str]) -> bool:
    """Whether layers can be labeled by number alone."""
    return max(map(len, layer_labels(hookpoints)[0]), default=0) <= 4


def group_label(name: str) -> str:
    """A group's name without the path that all of its layers share: `3–5` for `layers.3-5`."""
    found = re.fullmatch(r"\D*([\d+\-]+)\D*", name)
    return found[1].replace("-", "–") if found else short(name)


def label_layers(
    axes: Axes, hookpoints: Sequence[str], axis: str = "x", *, title: bool = True, most: int = _MOST_TICKS
) -> None:
    """Ticks at 0, 1, ... that name layers; some are left out where they would touch."""
    labels, name = layer_labels(hookpoints)
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if len(labels) / step <= most)
    where = axes.xaxis if axis == "x" else axes.yaxis
    where.set_major_locator(FixedLocator(list(range(0, len(labels), step))))
    where.set_ticklabels(labels[::step])
    if axis == "x" and not are_short(hookpoints):
        axes.tick_params(axis="x", labelrotation=55 if len(labels) < 14 else 90)
    if title:
        where.set_label_text(name)


def heading(axes: Axes, text: str, pad: float = 8) -> None:
    """A panel's title: at its upper left, in place of a label turned on its side."""
    axes.set_title(text, loc="left", fontsize=8.5, color=INK, pad=pad)


_ROUND_TIMES = tuple(unit * step for unit in (1, 60, 3600) for step in (1, 2, 5, 10, 20, 30))


def time_axis(axes: Axes, span: float) -> None:
    """Ticks of the x-axis at round times, so that about seven fit into `span` seconds."""
    step = next((step for step in _ROUND_TIMES if span / step <= 7), span / 5)
    axes.xaxis.set_major_locator(MultipleLocator(step) if span >= 1 else MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick_time(value, step)))


def _tick_time(seconds: float, step: float) -> str:
    """A time on an axis, in the unit of its steps."""
    unit, size = ("h", 3600) if step >= 3600 else ("min", 60) if step >= 60 else ("s", 1)
    return f"{seconds / size:g} {unit}" if seconds else "0"


# ---- methods


_METHOD_DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.4)), (0, (6, 1.5, 1, 1.5)))


def method_styles(methods: Iterable[str], own: str) -> dict[str, dict[str, object]]:
    """How each method's line is drawn: the run's own dark, the others gray, told apart by their dashes."""
    others = [name for name in methods if name != own]
    styles = {
        name: {"color": GRAY, "linewidth": 1.4, "linestyle": _METHOD_DASHES[index % len(_METHOD_DASHES)]}
        for index, name in enumerate(others)
    }
    return styles | {own: {"color": INK, "linewidth": 1.6, "linestyle": "solid"}}


def method_handles(methods: Iterable[str], own: str) -> list[Line2D]:
    """A legend's entries for methods, the run's own first."""
    styles = method_styles(methods, own)
    names = [own, *(name for name in styles if name != own)]
    return [
        Line2D([], [], label=short(name) + (" (this run)" if name == own else ""), **styles[name]) for name in names
    ]


# ---- groups


def group_colors(partition: Partition | None) -> dict[Group, str]:
    """A color per group: groups of one are gray, the others take the palette in turn."""
    shared = [group for group in (partition.groups if partition else ()) if len(group) > 1]
    colors = {group: GROUP_COLORS[index % len(GROUP_COLORS)] for index, group in enumerate(shared)}
    return {group: colors.get(group, GRAY) for group in (partition.groups if partition else ())}


def layer_colors(partition: Partition | None, hookpoints: Sequence[str]) -> list[str]:
    """The color of each layer's group."""
    colors = {name: color for group, color in group_colors(partition).items() for name in group}
    return [colors.get(name, GRAY) for name in hookpoints]


def runs(group: Group, order: Sequence[str]) -> list[tuple[int, int]]:
    """The stretches of neighboring positions (first, last) that a group takes up in an order of layers."""
    positions = sorted(order.index(name) for name in group)
    breaks = [0] + [i + 1 for i, (a, b) in enumerate(pairwise(positions)) if b != a + 1] + [len(positions)]
    return [(positions[a], positions[b - 1]) for a, b in pairwise(breaks)]


def in_order(hookpoints: Sequence[str]) -> list[str]:
    """Layers in natural order."""
    return sorted(hookpoints, key=natural_key)
