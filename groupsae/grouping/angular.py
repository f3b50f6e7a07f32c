"""The angular distance between layers: the mean angle between their centered activations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource, row_clusters, worked_stream
from groupsae.activations.stats import ActivationStats, accumulator_device, token_blocks
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.grouping.centering import Centering, Progress, require_reachable, stats_for
from groupsae.grouping.distances import Distances

MIN_CLUSTERS = 10
"""Clusters that are read before `until_stderr` may end the measurement: fewer say little about their spread."""
MAX_CLUSTERS = 512
"""Clusters whose sums are kept apart, so that memory does not depend on the number of documents."""

_NEARLY_PARALLEL = 0.999
_WORTH_REFINING = 0.01


def angular_distances(
    source: ActivationSource,
    num_tokens: int,
    seed: int = 0,
    until_stderr: float | None = None,
    progress: Progress | None = None,
    stats: ActivationStats | None = None,
    ranks: Ranks = ALONE,
) -> Distances:
    """The angular distances of all pairs of hookpoints, in [0, 1].

        d(p, q) = mean over tokens of arccos(cos(x_p - mean_p, x_q - mean_q)) / pi

    (Group-SAE, arXiv 2410.21508, section on layer similarity; there with running means.) Two passes
    over the same tokens, one if their `stats` are given: exact float64 means, then angles in float32, all
    pairs at once, summed in float64; 2 L^2 D FLOPs per token. Memory does not depend on `num_tokens`. A token that
    stands exactly at a layer's mean has no direction there; it counts as at a right angle, 1/2.

    `standard_error` treats documents as independent and the rows and tokens of one document as not: they are
    alike, and an error from rows or tokens would be too small. Where the source knows no documents, rows take their
    place. It is None for a single cluster. With `until_stderr` the second pass ends once every error is below it,
    after tokens of `MIN_CLUSTERS` clusters at the least. `progress` receives the number of tokens newly read, in both
    passes. Several `ranks` share the reading, to the same bits.

    Raises ConfigError for impossible numbers, TextError for a source without tokens, NumericalError
    for NaN or infinity.
    """
    require_reachable(until_stderr)
    center = Centering(stats_for(source, num_tokens, seed, stats, progress, ranks).mean_LD, source.device)
    sums = _ClusterSums(source, accumulator_device(source.device))
    angles = lambda x_LND, row_N: _summed_angles(x_LND, row_N, center)  # noqa: E731
    for tokens, (row_R, count_R, sum_RLL) in worked_stream(source, num_tokens, seed, angles, ranks=ranks):
        sums.add(row_R, count_R, sum_RLL)
        if progress:
            progress(tokens)
        if until_stderr is not None and sums.clusters >= MIN_CLUSTERS and sums.standard_error().max() < until_stderr:
            break
    errors = sums.standard_error() if sums.clusters > 1 else None
    return Distances(source.hookpoints, sums.mean(), "angular", sums.tokens, errors)


def angles_between(u_LnD: Tensor) -> Tensor:
    """The angles (n, L, L) over pi between each token's vectors at all layers; 1/2 where a vector is zero.

    float32 loses the angle of nearly parallel vectors in the rounding of their cosine; where a pair
    of layers has many of those, it is taken from the sides of the rhombus they span instead.
    """
    unit_LnD = u_LnD / torch.linalg.vector_norm(u_LnD, dim=-1, keepdim=True).clamp_min(torch.finfo(u_LnD.dtype).tiny)
    unit_nLD = unit_LnD.transpose(0, 1)
    cosine_nLL = torch.bmm(unit_nLD, unit_nLD.transpose(1, 2)).clamp_(-1, 1)
    parallel_nLL = cosine_nLL.abs() > _NEARLY_PARALLEL
    angle_nLL = torch.arccos(cosine_nLL).div_(math.pi)
    share_LL = parallel_nLL.float().mean(dim=0).triu(diagonal=1)
    for p, q in (share_LL > _WORTH_REFINING).nonzero().tolist():
        exact_n = _angle_from_sides(unit_LnD[p], unit_LnD[q])
        refined_n = torch.where(parallel_nLL[:, p, q], exact_n, angle_nLL[:, p, q])
        angle_nLL[:, p, q] = angle_nLL[:, q, p] = refined_n
    return angle_nLL


def _angle_from_sides(one_nD: Tensor, other_nD: Tensor) -> Tensor:
    """The angle over pi between unit vectors, exact near 0 and 1: 2 atan(|a - b| / |a + b|) / pi."""
    apart_n = torch.linalg.vector_norm(one_nD - other_nD, dim=-1)
    together_n = torch.linalg.vector_norm(one_nD + other_nD, dim=-1)
    return torch.atan2(apart_n, together_n) * (2 / math.pi)


def _summed_angles(x_LND: Tensor, row_N: Tensor, center: Centering) -> tuple[Tensor, Tensor, Tensor]:
    """The rows (R,) that tokens are of, the tokens of each (R,), and the sum of their angles (R, L, L) in float64."""
    layers, device = len(x_LND), accumulator_device(x_LND.device)
    row_R, place_N, count_R = row_N.unique_consecutive(return_inverse=True, return_counts=True)
    sum_RLL = torch.zeros(len(row_R), layers, layers, dtype=torch.float64, device=device)
    begin = 0
    for x_LnD in token_blocks(x_LND, per_token=4 * layers**2):
        angles_nLL = angles_between(center(x_LnD))
        places, counts = place_N[begin : begin + x_LnD.shape[1]].unique_consecutive(return_counts=True)
        for place, part_nLL in zip(places.tolist(), angles_nLL.split(counts.tolist()), strict=True):
            sum_RLL[place] += part_nLL.to(device).sum(dim=0, dtype=torch.float64)
        begin += x_LnD.shape[1]
    return row_R, count_R, sum_RLL


class _ClusterSums:
    """Sums of angles over clusters of rows, from which the mean over tokens and its standard error follow.

    With S_c the sum and n_c the tokens of cluster c, N = sum n_c, M clusters that were read:
    mean = sum S_c / N;  error^2 = M / (M - 1) * sum (S_c - mean n_c)^2 / N^2   (ratio estimator).
    Neighboring documents share a cluster where there are more than `MAX_CLUSTERS`.
    """

    def __init__(self, source: ActivationSource, device: torch.device) -> None:
        layers = len(source.hookpoints)
        documents_R = torch.from_numpy(row_clusters(source, torch.arange(source.num_rows)))
        documents = int(documents_R.max()) + 1 if len(documents_R) else 0
        self._cluster_R = documents_R * min(documents, MAX_CLUSTERS) // max(1, documents)
        self._sum_CLL = torch.zeros(min(documents, MAX_CLUSTERS), layers, layers, dtype=torch.float64, device=device)
        self._count_C = torch.zeros(len(self._sum_CLL), dtype=torch.float64, device=device)

    def add(self, row_R: Tensor, count_R: Tensor, sum_RLL: Tensor) -> None:
        """Take in the sums of angles of some rows, and how many tokens each has."""
        cluster_R = self._cluster_R[row_R.cpu()].to(self._sum_CLL.device)
        self._sum_CLL.index_add_(0, cluster_R, sum_RLL.to(self._sum_CLL.device))
        self._count_C.index_add_(0, cluster_R, count_R.to(self._count_C))

    @property
    def tokens(self) -> int:
        return int(self._count_C.sum())

    @property
    def clusters(self) -> int:
        return int((self._count_C > 0).sum())

    def _mean_LL(self) -> Tensor:
        mean_LL = self._sum_CLL.sum(0) / self._count_C.sum()
        return ((mean_LL + mean_LL.T) / 2).fill_diagonal_(0)

    def mean(self) -> np.ndarray:
        return self._mean_LL().cpu().numpy()

    def standard_error(self) -> np.ndarray:
        miss_CLL = self._sum_CLL - self._mean_LL() * self._count_C[:, None, None]
        variance_LL = miss_CLL.square().sum(0) * self.clusters / (self.clusters - 1)
        error_LL = variance_LL.sqrt() / self._count_C.sum()
        return ((error_LL + error_LL.T) / 2).fill_diagonal_(0).cpu().numpy()
