"""Which positions of a row are left out: one rule for distances, scales, training and evaluation.

In real models a few positions have norms tens to hundreds of times those of all others (attention sinks: the first
position of a row, some separators). On SmolLM2-135M the first position has 12 to 180 times the median norm from layer
11 on. It is 0.4 % of the tokens and holds 99 % of the variance there. Such positions move every mean, and with it
every angle between layers, and they decide FVU. So they are left out, like special tokens.

A position is left out at every hookpoint of a run if at any of them

    ||x_l|| > max_norm * median ||x_l||        the median being over positions that are not special, nor first in a row

The default of 10 was chosen on three models. SmolLM2-135M: the largest norms of single tokens at layers 2 to 8 reach 7
to 20 medians and belong to the model's ordinary work (1 % of the tokens); beyond 10 lie at most 0.15 % of the tokens of
any layer. The two small models of this project have no position beyond 2.6 medians.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

LeaveOut = Literal["outliers", "special", "nothing"]


@dataclass(frozen=True)
class PositionRule:
    """What is left out.

    leave_out  `outliers`: special tokens, the first positions of each row, and norms beyond the limit.
               `special`: special tokens only. `nothing`: no position, as published
    first      how many positions at the start of a row count as outliers
    max_norm   the limit, in medians
    """

    leave_out: LeaveOut = "outliers"
    first: int = 1
    max_norm: float = 10.0

    @property
    def other(self) -> PositionRule:
        """What results are shown for beside this rule: all positions, or outliers left out where none is."""
        kind: LeaveOut = "outliers" if self.leave_out == "nothing" else "nothing"
        return PositionRule(kind, self.first, self.max_norm)

    def by_token(self, special_BT: Tensor) -> Tensor:
        """out_BT: true where a position is left out for its token or its place in the row."""
        if self.leave_out == "nothing":
            return torch.zeros_like(special_BT)
        out_BT = special_BT.clone()
        if self.leave_out == "outliers":
            out_BT[:, : self.first] = True
        return out_BT

    def out(self, special_BT: Tensor, x_LBTD: Sequence[Tensor], limit_L: Sequence[float] | None) -> Tensor:
        """out_BT: true where a position is left out for any reason. Without limits, norms do not count."""
        out_BT = self.by_token(special_BT)
        if self.leave_out == "outliers" and limit_L is not None:
            out_BT |= beyond(x_LBTD, limit_L)
        return out_BT


def beyond(x_LBTD: Sequence[Tensor], limit_L: Sequence[float]) -> Tensor:
    """True at positions (B, T) whose norm exceeds the limit at any hookpoint."""
    beyond_BT = torch.zeros(x_LBTD[0].shape[:2], dtype=torch.bool, device=x_LBTD[0].device)
    for x_BTD, limit in zip(x_LBTD, limit_L, strict=True):
        beyond_BT |= norms(x_BTD) > limit
    return beyond_BT


def norms(x_BTD: Tensor) -> Tensor:
    """Norms (B, T) in float32, whatever the precision of the activations."""
    return torch.linalg.vector_norm(x_BTD, dim=-1, dtype=torch.float32)


@dataclass(frozen=True)
class PositionFacts:
    """What a sample of rows says of the positions that the rule leaves out.

    median_norm     by hookpoint, over positions that are not special, nor first in a row
    limit           by hookpoint: `max_norm` times the median
    shares          of all positions, by the first reason that holds: `special`, `first`, `norm`
    variance_share  by hookpoint: of the variance of all positions, the share that those left out hold
    num_positions   positions of the sample
    """

    median_norm: dict[str, float]
    limit: dict[str, float]
    shares: dict[str, float] = field(default_factory=dict)
    variance_share: dict[str, float] = field(default_factory=dict)
    num_positions: int = 0

    def limits(self, hookpoints: Sequence[str]) -> tuple[float, ...]:
        """The limits at these hookpoints."""
        return tuple(self.limit[hookpoint] for hookpoint in hookpoints)


def measure_positions(x_LBTD: Mapping[str, Tensor], special_BT: Tensor, rule: PositionRule) -> PositionFacts:
    """The facts of a sample: activations (B, T, D) by hookpoint, and true at special tokens (B, T)."""
    ordinary_BT = ~PositionRule("outliers", rule.first).by_token(special_BT)
    finite_BT = torch.stack([torch.isfinite(x_BTD).all(-1) for x_BTD in x_LBTD.values()]).all(0)
    sampled_BT = ordinary_BT & finite_BT
    if not sampled_BT.any():
        return PositionFacts({}, dict.fromkeys(x_LBTD, float("inf")))
    median = {name: norms(x_BTD)[sampled_BT].median().item() for name, x_BTD in x_LBTD.items()}
    limit = {name: rule.max_norm * value for name, value in median.items()}
    out_BT = rule.out(special_BT, list(x_LBTD.values()), list(limit.values())) & finite_BT
    first_BT = rule.by_token(torch.zeros_like(special_BT))
    reasons = {"special": out_BT & special_BT, "first": out_BT & first_BT & ~special_BT}
    reasons["norm"] = out_BT & ~special_BT & ~first_BT
    return PositionFacts(
        median,
        limit,
        {name: part_BT.float().mean().item() for name, part_BT in reasons.items()},
        {name: _variance_share(x_BTD[finite_BT], out_BT[finite_BT]) for name, x_BTD in x_LBTD.items()},
        special_BT.numel(),
    )


def _variance_share(x_ND: Tensor, out_N: Tensor) -> float:
    squares_N = (x_ND.double() - x_ND.double().mean(0)).square().sum(-1)
    return (squares_N[out_N].sum() / squares_N.sum().clamp_min(torch.finfo(torch.float64).tiny)).item()
