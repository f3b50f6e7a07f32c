"""Balanced accuracy of a judge's verdicts, with Wilson intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdicts:
    """How many windows were judged, and how many rightly: those that activate and those that do not.

    Windows without an answer that can be read are in none of the counts.
    """

    active: int = 0
    right_active: int = 0
    inactive: int = 0
    right_inactive: int = 0

    @classmethod
    def of(cls, truths: Sequence[bool], verdicts: Sequence[bool | None]) -> Verdicts:
        """The counts of some windows; None is a window without a verdict."""
        pairs = [(truth, one) for truth, one in zip(truths, verdicts, strict=True) if one is not None]
        counts = [(kind, [one == truth for truth, one in pairs if truth == kind]) for kind in (True, False)]
        (_, active), (_, inactive) = counts
        return cls(len(active), sum(active), len(inactive), sum(inactive))

    @property
    def balanced_accuracy(self) -> float | None:
        """The mean of both kinds' shares of right verdicts, in [0, 1]; None unless both kinds were judged."""
        if not (self.active and self.inactive):
            return None
        return (self.right_active / self.active + self.right_inactive / self.inactive) / 2

    @property
    def size(self) -> float:
        """The windows that, half of each kind, would give the accuracy as exactly: 4 / (1/active + 1/inactive)."""
        return 4 / (1 / self.active + 1 / self.inactive) if self.active and self.inactive else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % Wilson interval; None without a balanced accuracy."""
        value = self.balanced_accuracy
        return None if value is None else wilson(value, self.size)


@dataclass(frozen=True)
class MeanAccuracy:
    """The mean balanced accuracy of some latents, its 95 % interval, and the latents that it is of."""

    mean: float | None
    interval: tuple[float, float] | None
    latents: int
    windows: int


def mean_accuracy(scores: Sequence[Verdicts]) -> MeanAccuracy:
    """The mean over the latents that have a balanced accuracy.

    Verdicts on one latent are alike: they share an explanation. So the interval is Wilson's for as many windows as
    would vary as much as the latents do, and for no more than there are.
    """
    values = [one.balanced_accuracy for one in scores]
    defined = [(value, one) for value, one in zip(values, scores, strict=True) if value is not None]
    windows = sum(one.active + one.inactive for _, one in defined)
    if not defined:
        return MeanAccuracy(None, None, 0, 0)
    mean = sum(value for value, _ in defined) / len(defined)
    size = _mean_size([one.size for _, one in defined], [value for value, _ in defined], mean)
    return MeanAccuracy(mean, wilson(mean, size), len(defined), windows)


def _mean_size(sizes: Sequence[float], values: Sequence[float], mean: float) -> float:
    """The windows that a mean of latents' accuracies is worth."""
    latents = len(values)
    independent = latents**2 / sum(1 / size for size in sizes)
    if latents < 2:
        return independent
    variance = sum((value - mean) ** 2 for value in values) / (latents - 1) / latents
    return min(independent, mean * (1 - mean) / variance) if 0 < mean < 1 and variance > 0 else independent


def wilson(share: float, size: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `size` trials, which need be no whole number (above 0)."""
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    center = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return max(0.0, center - half), min(1.0, center + half)
