"""The figure of what dictionaries share: the mean max cosine similarity of every two of them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator

from groupsae.report.data import BASELINE, GROUPS, Record
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, INK, Drawing
from groupsae.report.wording import fixed

_FAR_TO_ALIKE = LinearSegmentedColormap.from_list(
    "shared", ["#f1f0e2", "#c9dcd4", "#8dbdc2", "#4c94ab", "#25688a", "#173f5f"]
)
_SHORT = {BASELINE: "layer", GROUPS: "group"}
_MOST_NUMBERED = 16


def shared_directions(record: Record | None) -> Drawing | None:
    """The matrix of MMCS between all dictionaries of a run as a heat map: `eval/similarity.json`.

    None where the record is missing or holds one dictionary only.
    """
    if record is None or len(record["dictionaries"]) < 2:
        return None
    matrix = np.asarray(record["mmcs"], dtype=float)
    np.fill_diagonal(matrix, np.nan)
    labels = [dictionary_label(one) for one in record["dictionaries"]]
    with theme.canvas(height=min(7.5, 1.6 + 0.36 * len(labels)), width=6.4) as figure:
        axes = figure.subplots()
        _heat(figure, axes, matrix, labels)
        svg = theme.to_svg(figure, "mmcs", "Heat map of the mean max cosine similarity of dictionaries")
    caption = (
        "Mean max cosine similarity (MMCS): for every latent of the row’s dictionary the largest |cosine| of its "
        "decoder direction with one of the column’s, on average; 1 where the column holds them all. Rows and columns "
        f"differ: a small dictionary can lie within a large one. Random directions would give {_random(record)}."
    )
    return Drawing("mmcs", "Which dictionaries share directions", caption, svg)


def _random(record: Record) -> str:
    low, high = (fixed(bound(record["mmcs_random"]), 2) for bound in (min, max))
    return low if low == high else f"{low} to {high}"


def dictionary_label(one: Record) -> str:
    """A dictionary by its suite and the numbers of its layers: `layer 3`, `group 4–5`."""
    suite = _SHORT.get(one["suite"], f"{one['suite']}:")
    return theme.short(f"{suite} {theme.group_label(one['group'])}")


def _heat(figure: Canvas, axes: Axes, matrix: np.ndarray, labels: list[str]) -> None:
    low, high = float(np.nanmin(matrix)), float(np.nanmax(matrix))
    high = high if high > low else low + 1e-6
    image = axes.imshow(matrix, cmap=_FAR_TO_ALIKE, vmin=low, vmax=high, interpolation="nearest", aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(list(range(len(labels)))))
        axis.set_ticklabels(labels)
    axes.tick_params(axis="x", labelrotation=90, length=0)
    axes.tick_params(axis="y", length=0)
    axes.set_facecolor(GRAY)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="right", shrink=0.7, aspect=30, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5, pad=1)
    bar.set_label("MMCS of the row in the column", fontsize=8.5, color=INK)
    if len(labels) <= _MOST_NUMBERED:
        for (row, column), value in np.ndenumerate(matrix):
            if row != column:
                dark = value > low + 0.5 * (high - low)
                text = f"{value:.2f}".removeprefix("0")
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=7, color="#ffffff" if dark else "#10202b"
                )
