"""SVCCA between layers: how well their leading directions predict one another."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource, Work, worked_stream
from groupsae.activations.stats import ActivationStats, accumulator_device, token_blocks
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import ConfigError
from groupsae.grouping.centering import Centering, Progress, stats_for
from groupsae.grouping.distances import Distances

_NEGLIGIBLE = 1e-10
TOKENS_PER_DIRECTION = 10
"""Fewer tokens than this for each direction kept would make any two layers look alike."""


def svcca_distances(
    source: ActivationSource,
    num_tokens: int,
    seed: int = 0,
    until_stderr: float | None = None,
    progress: Progress | None = None,
    stats: ActivationStats | None = None,
    ranks: Ranks = ALONE,
) -> Distances:
    """1 - mean squared canonical correlation of the layers' leading directions, in [0, 1].

    Each layer keeps its top floor(sqrt(D)) principal directions (Raghu et al. 2017 keep those of 99 % of
    the variance; the square root is the choice of the Group-SAE code); the correlations are the
    singular values of C_pp^(-1/2) C_pq C_qq^(-1/2), and their squares are averaged over the smaller of the
    two numbers of directions. Directions without variance are dropped; a layer without any is at distance 1.

    Three passes over the same tokens, two if their `stats` are given: exact means, each layer's covariance
    (L, D, D), and the covariances between the kept directions; products in float32, sums in float64, so memory does
    not grow with tokens. There is no standard error, so `until_stderr` is refused with ConfigError; so are
    fewer tokens than `TOKENS_PER_DIRECTION` for each direction. Else as `angular_distances`.
    """
    if until_stderr is not None:
        raise ConfigError("svcca has no standard error to stop at; leave until_stderr out, or use angular or cka.")
    kept = max(1, math.isqrt(source.d_model))
    stats = stats_for(source, num_tokens, seed, stats, progress, ranks)
    tokens = stats.count
    if tokens < TOKENS_PER_DIRECTION * kept:
        raise ConfigError(
            f"svcca of {kept} directions needs {TOKENS_PER_DIRECTION * kept} tokens or more, "
            f"there are {tokens}. Raise num_tokens."
        )
    center = Centering(stats.mean_LD, source.device)
    covariance_LDD = _covariances(source, num_tokens, seed, center, progress, ranks) / tokens
    directions_LDk = torch.linalg.eigh(covariance_LDD).eigenvectors[:, :, -kept:]
    joint_MM = _joint_covariance(source, num_tokens, seed, center, directions_LDk.float(), progress, ranks) / tokens
    return Distances(source.hookpoints, _distances(joint_MM.cpu().numpy(), kept), "svcca", tokens)


def _covariances(
    source: ActivationSource, num_tokens: int, seed: int, center: Centering, progress: Progress | None, ranks: Ranks
) -> Tensor:
    layers, width, device = len(source.hookpoints), source.d_model, accumulator_device(source.device)

    def covariance(x_LND: Tensor, _: Tensor) -> list[Tensor]:
        sum_LDD = torch.zeros(layers, width, width, dtype=torch.float64, device=device)
        for x_LnD in token_blocks(x_LND):
            for sum_DD, u_nD in zip(sum_LDD, center(x_LnD), strict=True):
                sum_DD += (u_nD.T @ u_nD).to(device)
        return [sum_LDD]

    return _total(source, num_tokens, seed, covariance, progress, ranks)


def _joint_covariance(
    source: ActivationSource,
    num_tokens: int,
    seed: int,
    center: Centering,
    directions_LDk: Tensor,
    progress: Progress | None,
    ranks: Ranks,
) -> Tensor:
    """The second moments (L k, L k) of all layers' kept directions together."""
    layers, _, kept = directions_LDk.shape
    directions_LDk, device = directions_LDk.to(source.device), accumulator_device(source.device)

    def moments(x_LND: Tensor, _: Tensor) -> list[Tensor]:
        sum_MM = torch.zeros(layers * kept, layers * kept, dtype=torch.float64, device=device)
        for x_LnD in token_blocks(x_LND):
            z_nM = torch.bmm(center(x_LnD), directions_LDk).transpose(0, 1).flatten(1)
            sum_MM += (z_nM.T @ z_nM).to(device)
        return [sum_MM]

    return _total(source, num_tokens, seed, moments, progress, ranks)


def _total(
    source: ActivationSource, num_tokens: int, seed: int, work: Work, progress: Progress | None, ranks: Ranks
) -> Tensor:
    """The sum over all batches of the one tensor that `work` makes of each."""
    total: Tensor | None = None
    for tokens, (part,) in worked_stream(source, num_tokens, seed, work, ranks=ranks):
        part = part.to(accumulator_device(source.device))
        total = part if total is None else total.add_(part)
        if progress:
            progress(tokens)
    return total


def _distances(joint_MM: np.ndarray, kept: int) -> np.ndarray:
    layers = len(joint_MM) // kept
    blocks_LkLk = joint_MM.reshape(layers, kept, layers, kept)
    whiten = [_inverse_root(blocks_LkLk[layer, :, layer]) for layer in range(layers)]
    distance_LL = np.zeros((layers, layers))
    for p in range(layers):
        for q in range(p):
            fewer = min(whiten[p].shape[1], whiten[q].shape[1])
            shared = np.square(whiten[p].T @ blocks_LkLk[p, :, q] @ whiten[q]).sum() / fewer if fewer else 0.0
            distance_LL[p, q] = distance_LL[q, p] = 1 - min(shared, 1.0)
    return distance_LL


def _inverse_root(covariance_kk: np.ndarray) -> np.ndarray:
    """W (k, r) with W' C W = 1 on the r directions that vary."""
    variance_k, axes_kk = np.linalg.eigh(covariance_kk)
    varies_k = variance_k > _NEGLIGIBLE * max(variance_k[-1], np.finfo(np.float64).tiny)
    return axes_kk[:, varies_k] / np.sqrt(variance_k[varies_k])
