"""The angular distance between layers: the mean angle between their centered activations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource, worked_stream
from groupsae.activations.stats import ActivationStats, accumulator_device, token_blocks
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.grouping.centering import Centering, Progress, require_reachable, stats_for
from groupsae.grouping.distances import Distances

MIN_BATCHES = 10
"""Batches that are read before `until_stderr` may end the measurement: fewer say little about their spread."""

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

    `standard_error` treats the batches of `stream` (`source.batch_rows` rows each) as independent and
    the tokens within a batch as not: tokens of a row are alike, and a token-level error would be too
    small. It is None for a single batch. With `until_stderr` the second pass ends once every error
    is below it, after `MIN_BATCHES` batches at the least. `progress` receives the number of
    tokens newly read, in both passes. Several `ranks` share the reading, to the same bits.

    Raises ConfigError for impossible numbers, TextError for a source without tokens, NumericalError
    for NaN or infinity.
    """
    require_reachable(until_stderr)
    center = Centering(stats_for(source, num_tokens, seed, stats, progress, ranks).mean_LD, source.device)
    sums = _BatchSums(len(source.hookpoints), accumulator_device(source.device))
    angles = lambda x_LND: [_summed_angles(x_LND, center)]  # noqa: E731
    for tokens, (sum_LL,) in worked_stream(source, num_tokens, seed, angles, ranks=ranks):
        sums.add(sum_LL, tokens)
        if progress:
            progress(tokens)
        if until_stderr is not None and sums.batches >= MIN_BATCHES and sums.standard_error().max() < until_stderr:
            break
    errors = sums.standard_error() if sums.batches > 1 else None
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


def _summed_angles(x_LND: Tensor, center: Centering) -> Tensor:
    layers = len(x_LND)
    device = accumulator_device(x_LND.device)
    total_LL = torch.zeros(layers, layers, dtype=torch.float64, device=device)
    for x_LnD in token_blocks(x_LND, per_token=4 * layers**2):
        total_LL += angles_between(center(x_LnD)).to(device).sum(dim=0, dtype=torch.float64)
    return total_LL


class _BatchSums:
    """Sums over batches from which the mean over tokens and its standard error follow.

    With S_b the sum and n_b the tokens of batch b, N = sum n_b, M batches:
    mean = sum S_b / N;  error^2 = M / (M - 1) * sum (S_b - mean n_b)^2 / N^2   (ratio estimator).
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self._sum_LL, self._square_LL, self._cross_LL = torch.zeros(
            3, layers, layers, dtype=torch.float64, device=device
        )
        self._square_tokens = 0
        self.tokens = self.batches = 0

    def add(self, sum_LL: Tensor, tokens: int) -> None:
        self._sum_LL += sum_LL
        self._square_LL += sum_LL**2
        self._cross_LL += sum_LL * tokens
        self._square_tokens += tokens**2
        self.tokens += tokens
        self.batches += 1

    def _mean_LL(self) -> Tensor:
        mean_LL = self._sum_LL / self.tokens
        mean_LL = (mean_LL + mean_LL.T) / 2
        return mean_LL.fill_diagonal_(0)

    def mean(self) -> np.ndarray:
        return self._mean_LL().cpu().numpy()

    def standard_error(self) -> np.ndarray:
        mean_LL = self._mean_LL()
        squares_LL = self._square_LL - 2 * mean_LL * self._cross_LL + mean_LL**2 * self._square_tokens
        error_LL = (squares_LL.clamp_min(0) * self.batches / (self.batches - 1)).sqrt() / self.tokens
        error_LL = (error_LL + error_LL.T) / 2
        return error_LL.fill_diagonal_(0).cpu().numpy()
