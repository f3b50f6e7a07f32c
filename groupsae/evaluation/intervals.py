"""Ratios of sums over rows, and how far to trust them.

Rows of one document are alike; documents are independent. So every metric is a ratio of two sums over
rows, and its 95 % interval comes from how the documents differ (the delta method, also called
linearization, with clusters):

    R = sum_r a_r / sum_r b_r        u_r = (a_r - R b_r) / sum_r b_r        u_c = sum of u_r over the rows of c
    R +- t_{0.975, n-1} sqrt(n / (n - 1) sum_c u_c^2)        c = 1 ... n clusters

u_r is what row r adds to the ratio. A cluster is a document, or a few rows of short documents
(`TokenRows.document_of_row`). Means and differences of ratios on the same rows have the same means and
differences of u_c, so a difference between two suites is judged document by document. Nothing is drawn
at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RowEstimate:
    """A ratio of sums over rows, None where it is undefined, and what each row, or cluster of rows, adds to it (R,)."""

    value: float | None
    influence_R: np.ndarray = field(compare=False, repr=False)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval (low, high); None for an undefined ratio, or fewer than two rows or clusters."""
        rows = len(self.influence_R)
        if self.value is None or rows < 2:
            return None
        error = float(np.sqrt(rows / (rows - 1) * np.square(self.influence_R).sum()))
        width = float(stats.t.ppf((1 + CONFIDENCE) / 2, rows - 1)) * error
        return self.value - width, self.value + width

    def clustered(self, clusters_R: np.ndarray) -> RowEstimate:
        """The same, with what the rows of each cluster add summed up. `clusters_R` numbers them from 0."""
        return RowEstimate(self.value, np.bincount(clusters_R, weights=self.influence_R))


def ratio(top_R: np.ndarray, bottom_R: np.ndarray, *, empty: float | None = None) -> RowEstimate:
    """sum top / sum bottom, where the bottom is above 0; else undefined, or `empty` where both sums are 0."""
    top, bottom = float(top_R.sum()), float(bottom_R.sum())
    if not bottom > 0:
        return RowEstimate(empty if top == bottom == 0 else None, np.zeros(len(top_R)))
    value = top / bottom
    return RowEstimate(value, (top_R - value * bottom_R) / bottom)


def mean(estimates: Sequence[RowEstimate]) -> RowEstimate:
    """The mean of estimates from the same rows; those that are undefined are left out."""
    defined = [one for one in estimates if one.value is not None]
    if not defined:
        return RowEstimate(None, np.zeros(0))
    values = [one.value for one in defined if one.value is not None]
    return RowEstimate(float(np.mean(values)), np.mean([one.influence_R for one in defined], axis=0))


def difference(one: RowEstimate, other: RowEstimate) -> RowEstimate:
    """one - other, both from the same rows; undefined where either is."""
    if one.value is None or other.value is None:
        return RowEstimate(None, np.zeros(0))
    return RowEstimate(one.value - other.value, one.influence_R - other.influence_R)
