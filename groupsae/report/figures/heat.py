"""A square matrix as a heat map: distances between layers, similarity of dictionaries."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas

from groupsae.report.figures.theme import GRAY, INK

_TINTS = ["#173f5f", "#25688a", "#4c94ab", "#8dbdc2", "#c9dcd4", "#f1f0e2"]
DARK_IS_LOW = LinearSegmentedColormap.from_list("dark-is-low", _TINTS)
DARK_IS_HIGH = LinearSegmentedColormap.from_list("dark-is-high", _TINTS[::-1])


def heat_map(
    figure: Canvas,
    axes: Axes,
    matrix: np.ndarray,
    label: str,
    colors: LinearSegmentedColormap,
    *,
    low: float,
    high: float,
    numbered: bool,
) -> None:
    """Draw the matrix with its color bar above it; `numbered` writes each entry off the diagonal into its cell."""
    high = high if high > low else low + 1e-6
    image = axes.imshow(matrix, cmap=colors, vmin=low, vmax=high, interpolation="nearest", aspect="equal")
    axes.set_facecolor(GRAY)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_anchor("W")
    bar = figure.colorbar(image, cax=axes.inset_axes((0, 1.03, 1, 0.022)), orientation="horizontal", ticklocation="top")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5, pad=1)
    bar.set_label(label, fontsize=8.5, loc="left", color=INK)
    if numbered:
        _write_numbers(axes, matrix, colors, low, high)


def _write_numbers(axes: Axes, matrix: np.ndarray, colors: LinearSegmentedColormap, low: float, high: float) -> None:
    size = 7 if len(matrix) > 11 else 8
    for (row, column), value in np.ndenumerate(matrix):
        if row != column:
            dark = sum(colors((value - low) / (high - low))[:3]) < 1.6
            color = "#ffffff" if dark else "#10202b"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color=color)
