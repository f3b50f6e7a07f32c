"""The figure of the distances between layers: a heat map, and the tree that complete linkage makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from groupsae.report.data import RunData
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, INK, MARK, PAPER, Drawing
from groupsae.report.wording import fixed

_ALIKE_TO_FAR = LinearSegmentedColormap.from_list(
    "alike", ["#173f5f", "#25688a", "#4c94ab", "#8dbdc2", "#c9dcd4", "#f1f0e2"]
)
_MOST_NUMBERED = 16


@dataclass(frozen=True)
class _Merge:
    """A fork of the tree: its height, its two branches' places and heights, and the layers below it."""

    height: float
    places: tuple[float, float]
    heights: tuple[float, float]
    members: tuple[int, ...]


def distance_map(data: RunData) -> Drawing | None:
    """The distances between all layers as a heat map, with the tree of complete linkage beside it."""
    if data.distances is None or len(data.distances["hookpoints"]) < 2:
        return None
    matrix = np.asarray(data.distances["matrix"], dtype=float)
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 0.0)
    order, merges = _tree(matrix)
    names = [data.distances["hookpoints"][index] for index in order]
    with theme.canvas(height=4.9 if theme.are_short(names) else 5.6) as figure:
        axes = figure.subplots()
        _heat(figure, axes, matrix[np.ix_(order, order)], names, _metric(data)[0])
        _borders(axes, data, names)
        room, wide = (0.11, 1.06) if theme.are_short(names) else (0.04, 0.85)
        _dendrogram(axes.inset_axes((1 + room, 0, wide, 1)), data, merges, names)
        svg = theme.to_svg(figure, "distances", "Heat map of layer distances with a dendrogram")
    return Drawing("distances", "Which layers are alike", _distance_caption(data), svg)


def _distance_caption(data: RunData) -> str:
    record = data.distances
    errors = record.get("standard_error")
    caption = f"{_metric(data)[1]} Measured on {record['num_tokens']:,} tokens"
    if errors is not None:
        caption += f"; no entry’s standard error exceeds {fixed(float(np.nanmax(np.asarray(errors, float))), 4)}"
    caption += (
        ". Right, the tree of complete linkage: branches meet at the largest distance between their layers, so "
        "whatever joins far to the left can share an SAE."
    )
    if data.chosen:
        caption += " Red borders, and colors in the tree, are the groups that were chosen."
    return caption


_METRICS = {
    "angular": (
        "angular distance",
        "Mean angle between the centered activations of two layers, as a share of a half turn: 0 is the same "
        "direction, 0.5 no relation.",
    ),
    "cka": ("1 − CKA", "One minus the linear CKA of two layers: 0 is the same geometry, 1 no relation."),
    "svcca": (
        "1 − SVCCA",
        "One minus the mean squared canonical correlation of two layers’ leading directions: 0 is the same space.",
    ),
}


def _metric(data: RunData) -> tuple[str, str]:
    """The metric's name and what it means."""
    metric = str(data.distances["metric"])
    return _METRICS.get(metric, (theme.short(metric), "Distance between two layers."))


def _tree(matrix: np.ndarray) -> tuple[list[int], list[_Merge]]:
    """The order of the leaves (as near to the layers' own as the tree allows), and the forks."""
    size = len(matrix)
    steps = linkage(squareform(matrix, checks=False), method="complete")
    leaves: dict[int, list[int]] = {index: [index] for index in range(size)}
    for step, (a, b, _, _) in enumerate(steps):
        first, second = sorted((leaves[int(a)], leaves[int(b)]), key=np.mean)
        leaves[size + step] = first + second
    order = leaves[2 * size - 2]
    place = {leaf: float(order.index(leaf)) for leaf in range(size)}
    height = dict.fromkeys(range(size), 0.0)
    merges = []
    for step, (a, b, distance, _) in enumerate(steps):
        a, b, node = int(a), int(b), size + step
        merges.append(_Merge(distance, (place[a], place[b]), (height[a], height[b]), tuple(leaves[node])))
        place[node], height[node] = (place[a] + place[b]) / 2, distance
    return order, merges


def _heat(figure: Canvas, axes: Axes, matrix: np.ndarray, names: list[str], metric: str) -> None:
    size = len(matrix)
    largest = float(matrix.max()) or 1.0
    image = axes.imshow(matrix, cmap=_ALIKE_TO_FAR, vmin=0, vmax=largest, interpolation="nearest", aspect="equal")
    theme.label_layers(axes, names, "x", most=17)
    theme.label_layers(axes, names, "y", title=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_anchor("W")
    place = axes.inset_axes((0, 1.03, 1, 0.022))
    bar = figure.colorbar(image, cax=place, orientation="horizontal", ticklocation="top")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5, pad=1)
    bar.set_label(metric, fontsize=8.5, loc="left", color=INK)
    if size <= (_MOST_NUMBERED if theme.are_short(names) else 10):
        for (row, column), value in np.ndenumerate(matrix):
            if row != column:
                dark = value < 0.55 * largest
                text = f"{value:.2f}".lstrip("0")
                color = "#ffffff" if dark else "#10202b"
                axes.text(column, row, text, ha="center", va="center", fontsize=7 if size > 11 else 8, color=color)


def _borders(axes: Axes, data: RunData, names: list[str]) -> None:
    """Lines between a cell inside a group's block and one outside it; groups need not be neighbors."""
    if not data.chosen:
        return
    label = np.array([data.chosen.index_of(name) for name in names])
    inside = np.pad(label[:, None] == label[None, :], 1)
    lines = []
    for row, column in np.argwhere(inside[1:, 1:] != inside[1:, :-1]):
        lines.append([(column - 0.5, row - 0.5), (column - 0.5, row + 0.5)])
    for row, column in np.argwhere(inside[1:, 1:] != inside[:-1, 1:]):
        lines.append([(column - 0.5, row - 0.5), (column + 0.5, row - 0.5)])
    width = 2.0 if len(names) <= 16 else 1.3
    for color, thickness in ((PAPER, width + 1.6), (MARK, width)):
        edges = LineCollection(lines, colors=color, linewidths=thickness, capstyle="projecting", clip_on=False)
        axes.add_collection(edges)


def _dendrogram(axes: Axes, data: RunData, merges: list[_Merge], names: list[str]) -> None:
    colors = theme.layer_colors(data.chosen, names)
    label = [data.chosen.index_of(name) if data.chosen else -1 for name in names]
    position = {leaf: place for place, leaf in enumerate(_leaf_order(merges))}
    for merge in merges:
        below = {label[position[member]] for member in merge.members}
        inside = data.chosen is not None and len(below) == 1
        color = colors[position[merge.members[0]]] if inside else GRAY
        (a, b), (from_a, from_b) = merge.places, merge.heights
        points = [(from_a, a), (merge.height, a), (merge.height, b), (from_b, b)]
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.8 if inside else 1.1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, merges[-1].height * 1.04)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    theme.label_layers(axes, names, "y", title=False)
    if not theme.are_short(names):  # the same labels stand at the left of the heat map
        axes.set_yticks([])
    axes.set_xlabel("largest distance between the joined layers")


def _leaf_order(merges: list[_Merge]) -> tuple[int, ...]:
    return merges[-1].members
