"""The figure of what dictionaries share: the mean max cosine similarity of every two of them."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FixedLocator

from groupsae.analysis.run_records import BASELINE, GROUPS, RunRecords
from groupsae.metrics import fixed
from groupsae.records.types.similarity import DictionaryName, SimilarityRecord
from groupsae.report.figures import theme
from groupsae.report.figures.heat import DARK_IS_HIGH, heat_map
from groupsae.report.figures.theme import Drawing

_SHORT = {BASELINE: "layer", GROUPS: "group"}
_MOST_NUMBERED = 16


def shared_directions(records: RunRecords) -> Drawing | None:
    """The matrix of MMCS between all dictionaries of a run as a heat map. None for one dictionary only."""
    record = records.similarity
    if record is None or len(record.dictionaries) < 2:
        return None
    matrix = np.array(record.mmcs, dtype=float)
    np.fill_diagonal(matrix, np.nan)
    labels = [dictionary_label(one) for one in record.dictionaries]
    with theme.canvas(height=min(7.5, 1.9 + 0.36 * len(labels)), width=6.4) as figure:
        axes = figure.subplots()
        bounds = {"low": float(np.nanmin(matrix)), "high": float(np.nanmax(matrix))}
        numbered = len(labels) <= _MOST_NUMBERED
        heat_map(figure, axes, matrix, "MMCS of the row in the column", DARK_IS_HIGH, **bounds, numbered=numbered)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(list(range(len(labels)))))
            axis.set_ticklabels(labels)
        axes.tick_params(axis="x", labelrotation=90)
        svg = theme.to_svg(figure, "mmcs", "Heat map of the mean max cosine similarity of dictionaries")
    caption = (
        "Mean max cosine similarity (MMCS): for every latent of the row’s dictionary, the largest |cosine| of its "
        "decoder direction with one of the column’s; the mean over latents. At 1 the column holds all of them. Rows "
        "and columns differ, because a small dictionary can lie within a large one. Random directions would give "
        f"{_random(record)}."
    )
    return Drawing("mmcs", "Which dictionaries share directions", caption, svg)


def _random(record: SimilarityRecord) -> str:
    low, high = (fixed(bound(record.mmcs_random), 2) for bound in (min, max))
    return low if low == high else f"{low} to {high}"


def dictionary_label(one: DictionaryName) -> str:
    """A dictionary by its suite and the numbers of its layers: `layer 3`, `group 4–5`."""
    suite = _SHORT.get(one.suite, f"{one.suite}:")
    return theme.short(f"{suite} {theme.group_label(one.group)}")
