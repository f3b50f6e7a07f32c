"""The figure of the distances between layers: a heat map, and the tree that complete linkage makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from groupsae.analysis.run_records import RunRecords
from groupsae.metrics import fixed
from groupsae.records.types.distances import DistancesRecord
from groupsae.report.figures import theme
from groupsae.report.figures.heat import DARK_IS_LOW, heat_map
from groupsae.report.figures.theme import GRAY, MARK, PAPER, Drawing

_NAMES = {
    "angular": (
        "angular distance",
        "Mean angle between the centered activations of two layers, as a share of a half turn: 0 is the same "
        "direction, 0.5 is no relation.",
    ),
    "cka": ("1 − CKA", "One minus the linear CKA of two layers: 0 is the same geometry, 1 is no relation."),
    "svcca": (
        "1 − SVCCA",
        "One minus the mean squared canonical correlation of two layers’ leading directions: 0 is the same space.",
    ),
}


@dataclass(frozen=True)
class _Merge:
    """A fork of the tree: its height, its two branches' places and heights, and the layers below it."""

    height: float
    places: tuple[float, float]
    heights: tuple[float, float]
    members: tuple[int, ...]


def distance_map(records: RunRecords) -> Drawing | None:
    """The distances between all layers as a heat map, with the tree of complete linkage beside it."""
    record = records.distances
    if record is None or len(record.hookpoints) < 2:
        return None
    matrix = np.asarray(record.matrix, dtype=float)
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 0.0)
    order, merges = _tree(matrix)
    names = [record.hookpoints[index] for index in order]
    short = theme.are_short(names)
    with theme.canvas(height=4.9 if short else 5.6) as figure:
        axes = figure.subplots()
        numbered = len(names) <= (16 if short else 10)
        bounds = {"low": 0.0, "high": float(matrix.max()), "numbered": numbered}
        heat_map(figure, axes, matrix[np.ix_(order, order)], _name(record)[0], DARK_IS_LOW, **bounds)
        theme.label_layers(axes, names, "x", most=17)
        theme.label_layers(axes, names, "y", title=False)
        _borders(axes, records, names)
        room, wide = (0.11, 1.06) if short else (0.04, 0.85)
        _dendrogram(axes.inset_axes((1 + room, 0, wide, 1)), records, merges, names)
        svg = theme.to_svg(figure, "distances", "Heat map of layer distances with a dendrogram")
    return Drawing("distances", "Which layers are alike", _caption(records, record), svg)


def _caption(records: RunRecords, record: DistancesRecord) -> str:
    error = fixed(max(map(max, record.standard_error), default=0.0), 4)
    caption = (
        f"{_name(record)[1]} Measured on {record.num_tokens:,} tokens; the largest standard error of an entry is "
        f"{error}. Right: the tree of complete linkage. Two branches meet at the largest distance between their "
        "layers, so layers that join far to the left can share an SAE."
    )
    return caption + " Red borders and colored branches are the chosen groups." * (records.chosen is not None)


def _name(record: DistancesRecord) -> tuple[str, str]:
    """The metric's name, and what it means."""
    return _NAMES.get(record.metric, (theme.short(record.metric), "Distance between two layers."))


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


def _borders(axes: Axes, records: RunRecords, names: list[str]) -> None:
    """Lines between a cell inside a group's block and one outside it; groups need not be neighbors."""
    if not records.chosen:
        return
    label = np.array([records.chosen.index_of(name) for name in names])
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


def _dendrogram(axes: Axes, records: RunRecords, merges: list[_Merge], names: list[str]) -> None:
    chosen = records.chosen
    colors = theme.layer_colors(chosen, names)
    label = [chosen.index_of(name) if chosen else -1 for name in names]
    position = {leaf: place for place, leaf in enumerate(merges[-1].members)}
    for merge in merges:
        inside = chosen is not None and len({label[position[member]] for member in merge.members}) == 1
        color = colors[position[merge.members[0]]] if inside else GRAY
        (a, b), (from_a, from_b) = merge.places, merge.heights
        points = [(from_a, a), (merge.height, a), (merge.height, b), (from_b, b)]
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.8 if inside else 1.1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, merges[-1].height * 1.04 or 1.0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    theme.label_layers(axes, names, "y", title=False)
    if not theme.are_short(names):  # the heat map shows the same labels
        axes.set_yticks([])
    axes.set_xlabel("largest distance between the joined layers")
