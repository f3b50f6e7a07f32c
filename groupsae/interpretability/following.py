"""How well the tokens that a latent promotes tell what comes next where it fires.

    AUROC = the chance that the token after a firing has a larger logit under the latent's direction than a token that
            follows anywhere in the text

The logits are those of the decoder row through the final norm and the unembedding. 0.5 is chance: the direction says
nothing about the next token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from groupsae.interpretability.auroc import LATENTS_AT_ONCE, auroc_rows, sample_rows
from groupsae.interpretability.directions import Unembedding
from groupsae.interpretability.firings import Firings
from groupsae.interpretability.surface import MIN_FIRINGS, MOST_FIRINGS

ANY_TOKENS = 1000
"""Tokens of the text, drawn at random, that the tokens after firings are compared with."""


@torch.no_grad()
def following_scores(
    firings: Firings,
    direction_SD: Tensor,
    unembedding: Unembedding,
    ids_RT: np.ndarray,
    kept_RT: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """AUROC (S,) of each latent whose row of `direction_SD` it is; NaN where too few tokens follow a firing."""
    next_N = np.full(ids_RT.shape, -1, dtype=np.int64)
    next_N[:, :-1] = np.where(kept_RT[:, 1:], ids_RT[:, 1:], -1)
    next_N = next_N.reshape(-1)
    known_X = next_N[next_N >= 0]
    if not len(known_X):
        return np.full(firings.count, np.nan, dtype=np.float32)
    any_X = torch.from_numpy(random.choice(known_X, ANY_TOKENS)).to(direction_SD.device)
    residual_SD = unembedding.residual(direction_SD)
    any_SX = (residual_SD @ unembedding.W_VD[any_X].T).cpu().numpy()
    next_M = next_N[firings.position_M]
    place_SP = sample_rows(firings.latent_M, next_M >= 0, firings.count, MOST_FIRINGS, random)
    next_SP = torch.from_numpy(next_M[place_SP].clip(0) if len(next_M) else place_SP.clip(0)).to(direction_SD.device)
    parts = zip(next_SP.split(LATENTS_AT_ONCE), residual_SD.split(LATENTS_AT_ONCE), strict=True)
    score_SP = torch.cat([torch.einsum("spd,sd->sp", unembedding.W_VD[ids_RP], rows_RD) for ids_RP, rows_RD in parts])
    enough_S = (place_SP >= 0).sum(1) >= MIN_FIRINGS
    found_S = auroc_rows(np.where(place_SP >= 0, score_SP.cpu().numpy(), np.nan), any_SX)
    return np.where(enough_S, found_S, np.nan).astype(np.float32)
