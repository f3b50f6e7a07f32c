"""Faithfulness against the size of a circuit: ratios with intervals, and areas under the curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.source import hash_seed
from groupsae.estimate import Estimate


@dataclass(frozen=True)
class Point:
    """A circuit of `size` latents per hookpoint.

    m       mean logit difference over the test prompts
    ratio   (m - m(empty)) / (m(full) - m(empty)), means over prompts first; None where the difference
            below the line cannot be told from zero; 95 % intervals are over resampled clusters of prompts
    median  the median over prompts of each prompt's own ratio
    """

    size: int
    m: float
    ratio: Estimate | None
    median: float | None


@dataclass(frozen=True)
class Curve:
    """Ratios by size, and the mean height of the curve.

    area         over the logarithm of the size: every doubling counts alike
    area_linear  over the size itself, as Group-SAE's figures have it: the largest sets count most
    """

    points: tuple[Point, ...]
    area: Estimate | None
    area_linear: Estimate | None


class Ratios:
    """Makes curves from m on P test prompts; the same resamples of the prompts serve every curve.

    `clusters_P` numbers pairs that are not independent from 0, and they are drawn together; without it, each pair is
    drawn alone.
    """

    def __init__(
        self, full_P: Tensor, empty_P: Tensor, resamples: int, seed: int, clusters_P: np.ndarray | None = None
    ) -> None:
        self._full_P, self._empty_P = full_P.double(), empty_P.double()
        random = torch.Generator().manual_seed(hash_seed(seed, "resampled prompts"))
        clusters_P = torch.arange(len(full_P)) if clusters_P is None else torch.from_numpy(clusters_P)
        count = int(clusters_P.max()) + 1
        drawn_RC = torch.randint(count, (resamples, count), generator=random)
        times_RC = torch.zeros(resamples, count, dtype=torch.float64)
        times_RC.scatter_add_(1, drawn_RC, torch.ones_like(times_RC))
        self._weights_RP = torch.cat([torch.ones_like(times_RC[:1]), times_RC])[:, clusters_P] / len(full_P)
        span_R = self._weights_RP @ (self._full_P - self._empty_P)
        low, high = span_R[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        self.defined = low > 0 or high < 0
        """Whether m(full) - m(empty) can be told from zero: its 95 % interval holds no zero."""
        self._span_R = span_R

    def estimate(self, m_P: Tensor) -> Estimate | None:
        """The ratio of one set of latents."""
        return _estimate(self._ratio_R(m_P)) if self.defined else None

    def curve(self, sizes: Sequence[int], m_nP: Sequence[Tensor]) -> Curve:
        """The curve of several sets of latents, by rising size."""
        points = tuple(
            Point(size, m_P.double().mean().item(), self.estimate(m_P), self._median(m_P))
            for size, m_P in zip(sizes, m_nP, strict=True)
        )
        if not self.defined:
            return Curve(points, None, None)
        ratio_nR = torch.stack([self._ratio_R(m_P) for m_P in m_nP])
        places = torch.tensor(sizes, dtype=torch.float64)
        return Curve(points, _estimate(mean_height(places.log(), ratio_nR)), _estimate(mean_height(places, ratio_nR)))

    def _ratio_R(self, m_P: Tensor) -> Tensor:
        """The ratio on the prompts as they are, then on each resample; resamples that lack a span are left out."""
        ratio_R = self._weights_RP @ (m_P.double() - self._empty_P) / self._span_R
        return ratio_R[torch.isfinite(ratio_R)]

    def _median(self, m_P: Tensor) -> float | None:
        span_P = self._full_P - self._empty_P
        some = span_P != 0
        if not self.defined or not some.any():
            return None
        return ((m_P.double() - self._empty_P)[some] / span_P[some]).quantile(0.5).item()


def mean_height(x_n: Tensor, y_nR: Tensor) -> Tensor:
    """The area under y(x) by the trapezoidal rule, over the width of x: (R,). The value itself for one point."""
    if len(x_n) == 1:
        return y_nR[0]
    return torch.trapezoid(y_nR, x_n, dim=0) / (x_n[-1] - x_n[0])


def _estimate(draws_R: Tensor) -> Estimate:
    """The first as the value, the others as its distribution."""
    low, high = draws_R[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(draws_R[0].item(), low, high)
