"""What two dictionaries share, by their decoder rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.optimize import linear_sum_assignment
from scipy.special import betainc
from torch import Tensor

COSINES_AT_ONCE = 16 * 2**20
"""Cosines held at once (128 MiB in float64)."""
EXACT_UP_TO = 4096
"""Rows up to which the best assignment is found; its time grows with their third power."""


@dataclass(frozen=True)
class Matching:
    """One-to-one pairs of rows of two dictionaries.

    share        pairs whose cosine is at least the threshold, as a share of the smaller dictionary, in [0, 1]
    mean_cosine  the mean over the pairs; None if there is no pair
    pairs        how many pairs there are
    method       `assignment`: the pairs of largest summed cosine, one for each row of the smaller dictionary.
                 `mutual`: only rows that are each other's best, for dictionaries too large for the former
    """

    share: float
    mean_cosine: float | None
    pairs: int
    method: Literal["assignment", "mutual"]


def best_cosines(one_SD: Tensor, other_SD: Tensor) -> tuple[Tensor, Tensor]:
    """The largest |cosine| of each row of one dictionary (S,) with the other's rows, and of the other's (S',) with it.

    float64, block by block; a row of zeros has cosine 0 with every row. Costs 2 S S' D FLOPs.
    """
    best_S, best_of_other_S = _zeros(one_SD), _zeros(other_SD)
    for start, cosine_RS in _cosines(one_SD, other_SD):
        cosine_RS.abs_()
        best_S[start : start + len(cosine_RS)] = cosine_RS.amax(1)
        torch.maximum(best_of_other_S, cosine_RS.amax(0), out=best_of_other_S)
    return best_S, best_of_other_S


def mmcs(one_SD: Tensor, other_SD: Tensor) -> float:
    """Mean max cosine similarity: mean over rows i of `one` of max_j |cos(one_i, other_j)|, in [0, 1].

    1 where the other dictionary holds every row of the first, up to sign and length. Not symmetric: a small
    dictionary may lie within a large one. (Sharkey et al. 2022; Group-SAE takes the cosine without |.|.)
    Random rows do not give 0 but `random_mmcs`.
    """
    return best_cosines(one_SD, other_SD)[0].mean().item()


def random_mmcs(d_sae: int, d_model: int) -> float:
    """The MMCS that any dictionary is expected to have with `d_sae` random directions, in [0, 1].

    The integral over t in [0, 1] of 1 - F(t)^S, where F(t) = I_{t^2}(1/2, (D - 1) / 2), a regularized
    incomplete beta function, is the chance that the |cosine| with one random direction is below t.
    """
    if d_model == 1:
        return 1.0
    t = np.linspace(0, 1, 4001)
    return float(trapezoid(1 - betainc(0.5, (d_model - 1) / 2, t**2) ** d_sae, t))


def match_rows(one_SD: Tensor, other_SD: Tensor, threshold: float = 0.7, exact_up_to: int = EXACT_UP_TO) -> Matching:
    """How many rows of two dictionaries are the same direction, each row being used once.

    Cosines are signed: latents are not negative, so opposite rows are different ones. The pairs are those of
    the best assignment where the larger dictionary has at most `exact_up_to` rows, else those that are each
    other's best. Used across seeds: Paulo and Belrose 2025, arXiv 2501.16615, with threshold 0.7.
    """
    if max(len(one_SD), len(other_SD)) <= exact_up_to:
        cosines, method = _assigned(one_SD, other_SD), "assignment"
    else:
        cosines, method = _mutual(one_SD, other_SD), "mutual"
    share = (cosines >= threshold).sum().item() / min(len(one_SD), len(other_SD))
    return Matching(share, cosines.mean().item() if len(cosines) else None, len(cosines), method)


def _assigned(one_SD: Tensor, other_SD: Tensor) -> Tensor:
    cosine_SS = torch.cat([block for _, block in _cosines(one_SD, other_SD)]).cpu()
    rows, columns = linear_sum_assignment(cosine_SS.numpy(), maximize=True)
    return cosine_SS[torch.from_numpy(rows), torch.from_numpy(columns)]


def _mutual(one_SD: Tensor, other_SD: Tensor) -> Tensor:
    best_S = torch.full((len(one_SD),), -torch.inf, dtype=torch.float64, device=one_SD.device)
    best_of_other_S = torch.full((len(other_SD),), -torch.inf, dtype=torch.float64, device=one_SD.device)
    partner_S = torch.zeros(len(one_SD), dtype=torch.long, device=one_SD.device)
    partner_of_other_S = torch.zeros(len(other_SD), dtype=torch.long, device=one_SD.device)
    for start, cosine_RS in _cosines(one_SD, other_SD):
        here = slice(start, start + len(cosine_RS))
        best_S[here], partner_S[here] = cosine_RS.max(1)
        column_S, row_S = cosine_RS.max(0)
        better_S = column_S > best_of_other_S
        best_of_other_S[better_S] = column_S[better_S]
        partner_of_other_S[better_S] = row_S[better_S] + start
    mutual_S = partner_of_other_S[partner_S] == torch.arange(len(one_SD), device=one_SD.device)
    return best_S[mutual_S].cpu()


def _cosines(one_SD: Tensor, other_SD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows of the matrix of cosines, each with the number of its first row."""
    one_SD, other_SD = _unit(one_SD), _unit(other_SD)
    rows = max(1, COSINES_AT_ONCE // len(other_SD))
    for start in range(0, len(one_SD), rows):
        yield start, one_SD[start : start + rows] @ other_SD.T


def _unit(rows_SD: Tensor) -> Tensor:
    rows_SD = rows_SD.double()
    norm_S1 = torch.linalg.vector_norm(rows_SD, dim=1, keepdim=True)
    return torch.where(norm_S1 > 0, rows_SD / norm_S1, 0.0)


def _zeros(rows_SD: Tensor) -> Tensor:
    return torch.zeros(len(rows_SD), dtype=torch.float64, device=rows_SD.device)
