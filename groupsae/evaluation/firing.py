"""When latents fire: which latents of two SAEs fire together, and at which layers a group's latents do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from groupsae.saes.base import Latents

PAIRS_AT_ONCE = 16 * 2**20
"""Pairs of latents that are counted at once, at most (192 MiB)."""


class FiringSets:
    """Which latents of one SAE fired on which tokens: 4 bytes per firing."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae, self.num_tokens = d_sae, 0
        self._latents: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []

    def add(self, latents: Latents) -> None:
        """The next tokens, and what fired on them."""
        fired_NK = latents.values_NK > 0
        self._latents.append(latents.indices_NK[fired_NK].cpu().numpy().astype(np.int32))
        self._ends.append(fired_NK.sum(1).cpu().numpy())
        self.num_tokens += len(fired_NK)

    def matrix(self) -> sparse.csr_array:
        """1 where a latent fired on a token, (S, N)."""
        indices = np.concatenate(self._latents) if self._latents else np.zeros(0, dtype=np.int32)
        counts = np.concatenate(self._ends) if self._ends else np.zeros(0, dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        ones = np.ones(len(indices), dtype=np.int32)
        by_token = sparse.csr_array((ones, indices, starts), shape=(self.num_tokens, self.d_sae))
        return by_token.T.tocsr()


def best_jaccards(one_SN: sparse.csr_array, other_SN: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """The largest Jaccard index of each latent's firing set with the other SAE's, both ways: (S,) and (S',).

    Jaccard(i, j) = tokens on which both fire / tokens on which at least one does, in [0, 1]. NaN for a
    latent that never fires. Takes time and memory of the pairs that fire together, never of S times S'.
    """
    count_S, count_of_other_S = (np.asarray(part.sum(1), dtype=np.int64) for part in (one_SN, other_SN))
    best_S, best_of_other_S = np.zeros(len(count_S)), np.zeros(len(count_of_other_S))
    rows, other_NS = max(1, PAIRS_AT_ONCE // len(count_of_other_S)), other_SN.T.tocsr()
    for start in range(0, len(count_S), rows):
        together = (one_SN[start : start + rows] @ other_NS).tocoo()
        i, j = together.row + start, together.col
        jaccard = together.data / (count_S[i] + count_of_other_S[j] - together.data)
        np.maximum.at(best_S, i, jaccard)
        np.maximum.at(best_of_other_S, j, jaccard)
    return np.where(count_S > 0, best_S, np.nan), np.where(count_of_other_S > 0, best_of_other_S, np.nan)


@dataclass(frozen=True)
class Spreading:
    """How the latents of a group's SAE spread over its layers.

    entropy            mean over latents that fire of -sum_l p_l ln p_l / ln L, p_l being layer l's share of the
                       latent's firings, in [0, 1]: 0 is one layer only, 1 all alike. None if none fires
    entropy_histogram  latents by entropy, in ten equal bins from 0 to 1
    mean_layer         mean over those latents of sum_l p_l l, l counting the group's layers from 0; None likewise
    layer_histogram    latents by their mean layer, rounded (half to even)
    one_layer_share    share of those latents that fire at one layer only; None likewise
    firing_share       each layer's share of all firings; zero if none fires
    silent             latents that never fire; they count nowhere above
    """

    layers: tuple[str, ...]
    entropy: float | None
    entropy_histogram: tuple[int, ...]
    mean_layer: float | None
    layer_histogram: tuple[int, ...]
    one_layer_share: float | None
    firing_share: tuple[float, ...]
    silent: int


def spread(counts_LS: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy over layers in [0, 1], and mean layer in [0, L - 1], of each latent (S,); NaN where it never fires.

    counts_LS holds how often each latent fired at each of L >= 2 layers, on as many tokens of each.
    """
    counts_LS = counts_LS.double()
    share_LS = counts_LS / counts_LS.sum(0)
    entropy_S = -torch.special.xlogy(share_LS, share_LS).sum(0) / np.log(len(counts_LS))
    places_L = torch.arange(len(counts_LS), dtype=torch.float64, device=counts_LS.device)
    return entropy_S.clamp(0, 1), places_L @ share_LS


def spreading(counts_LS: Tensor, layers: Sequence[str]) -> Spreading:
    """The `Spreading` of a group whose latents fired so often at these layers."""
    fired_S = counts_LS.sum(0) > 0
    entropy_S, mean_S = (part[fired_S] for part in spread(counts_LS))
    total, some = counts_LS.sum().item(), bool(fired_S.any())
    one_layer = ((counts_LS > 0).sum(0)[fired_S] == 1).double()
    return Spreading(
        layers=tuple(layers),
        entropy=entropy_S.mean().item() if some else None,
        entropy_histogram=tuple(torch.histc(entropy_S, 10, 0, 1).long().tolist()),
        mean_layer=mean_S.mean().item() if some else None,
        layer_histogram=tuple(torch.bincount(mean_S.round().long(), minlength=len(layers)).tolist()),
        one_layer_share=one_layer.mean().item() if some else None,
        firing_share=tuple((counts_LS.sum(1).double() / max(total, 1)).tolist()),
        silent=int((~fired_S).sum()),
    )
