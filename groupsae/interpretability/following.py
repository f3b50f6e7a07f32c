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

from groupsae.interpretability.directions import Unembedding
from groupsae.interpretability.firings import Firings
from groupsae.interpretability.surface import MIN_FIRINGS, MOST_FIRINGS, auroc

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
    found_S = np.full(firings.count, np.nan, dtype=np.float32)
    if not len(known_X):
        return found_S
    any_X = torch.from_numpy(random.choice(known_X, ANY_TOKENS)).to(direction_SD.device)
    residual_SD = unembedding.residual(direction_SD)
    any_SX = (residual_SD @ unembedding.W_VD[any_X].T).cpu().numpy()
    for latent in range(firings.count):
        next_P = next_N[firings.position_M[firings.start[latent] : firings.start[latent + 1]]]
        next_P = next_P[next_P >= 0]
        if len(next_P) < MIN_FIRINGS:
            continue
        if len(next_P) > MOST_FIRINGS:
            next_P = random.choice(next_P, MOST_FIRINGS, replace=False)
        rows_PD = unembedding.W_VD[torch.from_numpy(next_P).to(direction_SD.device)]
        score_P = (rows_PD @ residual_SD[latent]).cpu().numpy()
        found_S[latent] = auroc(np.concatenate([score_P, any_SX[latent]]), len(score_P))
    return found_S
