"""Firings, suites and stores of contexts that tests know everything of."""

from __future__ import annotations

import numpy as np
import torch

from groupsae.config import TopKConfig
from groupsae.interpretability.firings import Firings
from groupsae.partition import Partition
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.saes.topk import TopKSAE


def firings_of(value_SN: np.ndarray) -> Firings:
    """The firings that a dense matrix of values (S, N) holds."""
    latent_M, position_M = np.nonzero(value_SN)
    return Firings(len(value_SN), latent_M, position_M, value_SN[latent_M, position_M].astype(np.float32))


def random_values(latents: int, positions: int, share: float, seed: int = 0) -> np.ndarray:
    """Values (S, N) of which about a share is above zero; the first latent never fires."""
    random = np.random.default_rng(seed)
    value_SN = np.where(random.random((latents, positions)) < share, random.random((latents, positions)) + 0.1, 0)
    value_SN[0] = 0
    return value_SN


def small_suite(groups: tuple[tuple[str, ...], ...], d_model: int = 16, d_sae: int = 24, k: int = 4) -> Suite:
    """SAEs with random weights, one for each group."""
    partition, saes = Partition(groups), {}
    for seed, name in enumerate(partition.names):
        sae = TopKSAE(d_model, TopKConfig(k=k, d_sae=d_sae))
        sae.initialize(seed)
        saes[name] = sae.requires_grad_(False)
    hookpoints = partition.hookpoints
    scales = Scales(hookpoints, torch.full((len(hookpoints),), 0.5), torch.zeros(len(hookpoints), d_model))
    return Suite(partition, saes, scales)
