"""Ratios of sums over rows, and how far to trust them.

Tokens of one row are read in one context and are alike; rows are independent. So every metric is a
ratio of two sums over rows, and its 95 % interval comes from how the rows differ (the delta method,
also called linearization):

    R = sum_r a_r / sum_r b_r        u_r = (a_r - R b_r) / sum_r b_r
    R +- t_{0.975, n-1} sqrt(n / (n - 1) sum_r u_r^2)

u_r is what row r adds to the ratio. Means and differences of ratios on the same rows have the same
means and differences of u_r, so a difference between two suites is judged row by row. Nothing is
drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RowEstimate:
    """A ratio of sums over rows, None where it is undefined, and what each row adds to it (R,)."""

    value: float | None
    influence_R: np.ndarray = field(compare=False, repr=False)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval (low, high); None for an undefined ratio, or fewer than two rows."""
        rows = len(self.influence_R)
        if self.value is None or rows < 2:
            return None
        error = float(np.sqrt(rows / (rows - 1) * np.square(self.influence_R).sum()))
        width = float(stats.t.ppf((1 + CONFIDENCE) / 2, rows - 1)) * error
        return self.value - width, self.value + width


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
