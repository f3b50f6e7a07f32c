"""How much a latent's windows have in common: can a window of another latent be told from them?

A window is the mean embedding of the tokens on which the latent fires in it, and beside it of the tokens before
those, both weighted by the latent's values; embeddings are the model's own, about their mean over the text. In each
trial four windows of a latent meet one of another latent of the same SAE at the same layer. The one whose mean cosine
with the others is smallest is called the intruder. The score is the share of trials that call the right one; chance
is 0.2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from groupsae.interpretability.selection import Windows

OWN, TRIALS = 4, 10
TIE = 1e-6
"""Sums of cosines that differ by less are equal."""


def window_vectors(windows: Windows, ids_RT: np.ndarray, embedding_VD: Tensor, mean_D: Tensor) -> Tensor:
    """What each window is compared by (W, 2 D), of unit norm."""
    row_V = np.repeat(windows.row_W, np.diff(windows.start_W))
    place_V = np.repeat(windows.first_W, np.diff(windows.start_W)) + windows.offset_V
    embedding_VD = embedding_VD - mean_D
    parts = []
    for shift in (0, 1):
        token_V = torch.from_numpy(ids_RT[row_V, np.maximum(place_V - shift, 0)].astype(np.int64))
        weight_V = torch.from_numpy(np.ascontiguousarray(windows.value_V)).float()
        start_W = torch.from_numpy(windows.start_W[:-1].astype(np.int64))
        sum_WD = F.embedding_bag(
            token_V.to(embedding_VD.device),
            embedding_VD,
            start_W.to(embedding_VD.device),
            mode="sum",
            per_sample_weights=weight_V.to(embedding_VD.device),
        )
        parts.append(F.normalize(sum_WD, dim=1))
    return F.normalize(torch.cat(parts, dim=1), dim=1)


@torch.no_grad()
def intruder_scores(windows: Windows, vectors_WD: Tensor, count: int, random: np.random.Generator) -> np.ndarray:
    """The share of trials in which the intruder is found (S,); NaN for latents with fewer than four windows."""
    per_latent_S = np.bincount(windows.latent_W, minlength=count)
    start_S = np.cumsum(per_latent_S) - per_latent_S
    scored = np.flatnonzero(per_latent_S >= OWN)
    found_S = np.full(count, np.nan, dtype=np.float32)
    if len(scored) < 2:
        return found_S
    latent_E = np.repeat(scored, TRIALS)
    own_E4 = np.argsort(_random_of(random, len(latent_E), per_latent_S[latent_E]), axis=1)[:, :OWN]
    own_E4 += start_S[latent_E][:, None]
    other_E = scored[(np.searchsorted(scored, latent_E) + random.integers(1, len(scored), len(latent_E))) % len(scored)]
    intruder_E = start_S[other_E] + random.integers(0, per_latent_S[other_E])
    all_E5 = torch.from_numpy(np.concatenate([own_E4, intruder_E[:, None]], axis=1)).to(vectors_WD.device)
    right_E = torch.cat([_last_is_farthest(vectors_WD[part]) for part in all_E5.split(4096)])
    found_S[scored] = right_E.cpu().numpy().reshape(-1, TRIALS).mean(1)
    return found_S


def _random_of(random: np.random.Generator, trials: int, available_E: np.ndarray) -> np.ndarray:
    """Random numbers (E, most) of which those beyond what is available are infinite."""
    most = int(available_E.max())
    drawn = random.random((trials, most))
    return np.where(np.arange(most) < available_E[:, None], drawn, np.inf)


def _last_is_farthest(vectors_E5D: Tensor) -> Tensor:
    """1 where the last of five windows is least like the others, a share of 1 where it ties with some (E,)."""
    cosine_E55 = vectors_E5D @ vectors_E5D.transpose(1, 2)
    others_E5 = cosine_E55.sum(2) - cosine_E55.diagonal(dim1=1, dim2=2)
    lowest_E5 = others_E5 <= others_E5.min(1, keepdim=True).values + TIE
    return lowest_E5[:, -1] / lowest_E5.sum(1)
