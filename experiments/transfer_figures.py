"""The figures of the transfer experiment: looks on the way, and every SAE on every layer."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from transfer_results import Look, TransferResults

from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, INK, MUTED, PAPER, Drawing
from groupsae.report.wording import count, fixed

_GOOD_TO_BAD = LinearSegmentedColormap.from_list(
    "good", ["#f1f0e2", "#c9dcd4", "#8dbdc2", "#4c94ab", "#25688a", "#173f5f"]
)
_MOST_NUMBERED = 12
TITLES = {
    "forward": "forward: from the layer before",
    "backward": "backward: from the layer after",
    "group": "group: from the group’s SAE",
}
_PANELS = (("fvu", "FVU"), ("delta_ce", "ΔCE, nats"))


def transfer_curves(results: TransferResults) -> Drawing:
    """FVU and delta CE of every direction over the tokens, with scratch and base beside them."""
    directions = list(results.looks)
    with theme.canvas(height=5.2) as figure:
        panels = figure.subplots(len(_PANELS), len(directions), squeeze=False, sharey="row")
        for row, (measure, title) in zip(panels, _PANELS, strict=True):
            for axes, direction in zip(row, directions, strict=True):
                base = getattr(results.base_mean(direction), measure)
                _curves(axes, results.looks[direction], measure, base)
                text = f"{TITLES[direction]}\n{title}" if measure == "fvu" else title
                theme.heading(axes, text)
        for axes in panels[-1]:
            axes.set_xlabel("tokens on the layer")
        _legend(figure)
        svg = theme.to_svg(figure, "transfer", "FVU and loss increase over tokens, warm and from scratch")
    caption = (
        "Means over the layers that start warm; lower is better. All lines of a panel share text, order and "
        "schedule, whose rate decays over its last part: only the last looks are of finished SAEs, and only they "
        "can fairly be held against the base SAEs (dashed). At zero tokens: the other layer’s SAE as it is."
    )
    return Drawing("transfer", "What a warm start gives", caption, svg)


def zero_shot_map(results: TransferResults) -> Drawing:
    """FVU of the SAE of each layer on every layer."""
    names = theme.in_order(results.hookpoints)
    matrix = np.array([[results.record["zero_shot"][j][i]["fvu"] for i in names] for j in names])
    with theme.canvas(height=4.6, width=5.6) as figure:
        axes = figure.subplots()
        image = axes.imshow(matrix, cmap=_GOOD_TO_BAD, vmin=0, vmax=max(1e-9, matrix.max()))
        theme.label_layers(axes, names)
        theme.label_layers(axes, names, "y", title=False)
        axes.set_ylabel("the SAE was trained on")
        axes.set_xlabel("and is used on " + theme.layer_labels(names)[1])
        axes.spines[:].set_visible(False)
        if len(names) <= _MOST_NUMBERED:
            _numbers(axes, matrix)
        bar = figure.colorbar(image, ax=axes, shrink=0.7)
        bar.outline.set_visible(False)
        bar.set_label("FVU")
        svg = theme.to_svg(figure, "zero-shot", "FVU of every layer’s SAE on every layer")
    above = matrix[np.tril_indices(len(names), -1)].mean() if len(names) > 1 else None
    below = matrix[np.triu_indices(len(names), 1)].mean() if len(names) > 1 else None
    caption = (
        "FVU without any training on the layer; each SAE sees activations in the layer’s own center and scale. "
        f"Mean FVU of later layers’ SAEs on earlier layers {fixed(above)}, of earlier layers’ on later {fixed(below)}."
    )
    return Drawing("zero-shot", "Every SAE on every layer", caption, svg)


def _curves(axes: Axes, looks: list[Look], measure: str, base: float | None) -> None:
    warm = [(look.tokens, getattr(look.transfer, measure)) for look in looks]
    scratch = [(look.tokens, getattr(look.scratch, measure)) for look in looks if look.scratch]
    for points, color in ((scratch, GRAY), (warm, INK)):
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3.5, linewidth=1.5)
    if base is not None:
        axes.axhline(base, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: count(tokens)))
    axes.xaxis.get_major_locator().set_params(nbins=3)
    axes.grid(axis="y")


def _legend(figure: Canvas) -> None:
    handles = [
        Line2D([], [], color=INK, marker="o", markersize=3.5, label="started warm"),
        Line2D([], [], color=GRAY, marker="o", markersize=3.5, label="from scratch, same tokens"),
        Line2D([], [], color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), label="base SAE, its whole budget"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _numbers(axes: Axes, matrix: np.ndarray) -> None:
    middle = matrix.max() * 0.55
    for (j, i), value in np.ndenumerate(matrix):
        axes.text(i, j, f"{value:.2f}", ha="center", va="center", fontsize=7, color=PAPER if value > middle else INK)
