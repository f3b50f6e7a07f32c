"""How often each latent of an SAE fires: dead, silent and dense latents, and the density histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from groupsae.distributed.ranks import Ranks
from groupsae.saes.base import Latents

DENSE = 0.1
"""A latent that fires on more than this share of the tokens is dense."""
DENSITY_EDGES = tuple(10 ** (exponent / 2) for exponent in range(-12, 1))
"""Edges of the density histogram, two bins to a power of ten, 1e-6 to 1; rarer latents count in the first bin."""


class FiringCounts:
    """Tokens on which each latent has fired, count_CS, in both scopes (`groupsae.evaluation.masks`)."""

    def __init__(self, d_sae: int, device: torch.device) -> None:
        self.count_CS = torch.zeros(2, d_sae, dtype=torch.int64, device=device)

    def add(self, latents: Latents, keep_CN: Tensor) -> None:
        """Take note of a batch of N tokens, of which keep_CN count."""
        fired_NK = latents.values_NK > 0
        for count_S, keep_N in zip(self.count_CS, keep_CN, strict=True):
            numbers = latents.indices_NK[fired_NK & keep_N[:, None]]
            count_S += torch.bincount(numbers, minlength=len(count_S))

    def merge(self, ranks: Ranks) -> None:
        """Take what other ranks have counted on their tokens."""
        self.count_CS = ranks.add(self.count_CS)

    @staticmethod
    def silent_share(counts: Sequence[FiringCounts], scope: int) -> float:
        """Share of the latents that have fired in none of these counts of one SAE."""
        total_S = torch.stack([one.count_CS[scope] for one in counts]).sum(0)
        return (total_S == 0).double().mean().item()

    def dense_share(self, scope: int, num_tokens: int) -> float:
        """Share of the latents that have fired on more than a tenth of the tokens."""
        return (self.count_CS[scope] > DENSE * num_tokens).double().mean().item()

    def histogram(self, scope: int, num_tokens: int) -> tuple[int, ...]:
        """Numbers of latents between `DENSITY_EDGES`, by share of tokens; those that never fire are in none."""
        count_S = self.count_CS[scope].cpu().numpy()
        density = np.clip(count_S[count_S > 0] / max(1, num_tokens), DENSITY_EDGES[0], 1.0)
        return tuple(np.histogram(density, DENSITY_EDGES)[0].tolist())
