"""Which positions of a row are left out: one rule for distances, scales, training and evaluation.

In real models a few positions have norms tens to hundreds of times those of all others (attention sinks: the first
position of a row, some separators). On SmolLM2-135M the first position has 12 to 180 times the median norm from layer
11 on. It is 0.4 % of the tokens and holds 99 % of the variance there. Such positions move every mean, and with it
every angle between layers, and they decide FVU. So they are left out, like special tokens.

A position is left out at every hookpoint of a run if at any of them

    ||x_l|| > max_norm * median ||x_l||        the median being over positions that are not special, nor first in a row

The default of 10 was chosen on three models. SmolLM2-135M: single tokens at layers 2 to 8 reach 5 to 10 medians in the
model's ordinary work (1 % of the tokens); beyond 10 lie at most 0.15 % of the tokens of any layer. The two small models
of this project have no position beyond 2.6 medians.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SAMPLE_ROWS = 32
"""Rows that the medians are measured on."""


@dataclass(frozen=True)
class OutlierRule:
    """What counts as an outlier: the first `first` positions of each row, and norms above `max_norm` medians.

    `max_norm` = 0 leaves no position out by its norm.
    """

    first: int = 1
    max_norm: float = 10.0

    def first_BT(self, like_BT: Tensor) -> Tensor:
        """True at the first positions of each row; the shape of `like_BT`."""
        first_BT = torch.zeros(like_BT.shape, dtype=torch.bool, device=like_BT.device)
        first_BT[:, : self.first] = True
        return first_BT


NO_OUTLIERS = OutlierRule(first=0, max_norm=0.0)
"""The rule that calls no position an outlier, as published."""


def beyond(x_LBTD: Sequence[Tensor], limit_L: Sequence[float]) -> Tensor:
    """True at positions (B, T) whose norm exceeds the limit at any hookpoint."""
    beyond_BT = torch.zeros(x_LBTD[0].shape[:2], dtype=torch.bool, device=x_LBTD[0].device)
    for x_BTD, limit in zip(x_LBTD, limit_L, strict=True):
        beyond_BT |= _norms(x_BTD) > limit
    return beyond_BT


def _norms(x_BTD: Tensor) -> Tensor:
    """Norms (B, T) in float32, whatever the precision of the activations."""
    return torch.linalg.vector_norm(x_BTD, dim=-1, dtype=torch.float32)


@dataclass(frozen=True)
class PositionFacts:
    """What a sample of rows says of the positions that are left out.

    median_norm     by hookpoint, over positions that are not special, nor first in a row
    limit           by hookpoint: `max_norm` times the median; infinite where norms do not count
    shares          of all positions, by the first reason that holds: `special`, `first`, `norm`
    variance_share  by hookpoint: of the variance of all positions, the share that those left out hold
    num_positions   positions of the sample
    """

    median_norm: dict[str, float]
    limit: dict[str, float]
    shares: dict[str, float]
    variance_share: dict[str, float]
    num_positions: int

    def to_json(self) -> dict[str, Any]:
        """The facts that JSON can hold: all but the limits, which follow from the medians."""
        return {key: value for key, value in vars(self).items() if key != "limit"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], rule: OutlierRule) -> PositionFacts:
        """The facts that `to_json` gave, with the limits of a rule."""
        return cls(**value, limit=limits(value["median_norm"], rule))


def limits(median_norm: Mapping[str, float], rule: OutlierRule) -> dict[str, float]:
    """The largest norm that counts as ordinary, by hookpoint; infinite where norms do not count."""
    return {name: rule.max_norm * median or float("inf") for name, median in median_norm.items()}


def measure_positions(x_LBTD: Mapping[str, Tensor], special_BT: Tensor, rule: OutlierRule) -> PositionFacts:
    """The facts of a sample: activations (B, T, D) by hookpoint, and true at special tokens (B, T)."""
    finite_BT = torch.stack([torch.isfinite(x_BTD).all(-1) for x_BTD in x_LBTD.values()]).all(0)
    first_BT = rule.first_BT(special_BT)
    ordinary_BT = finite_BT & ~special_BT & ~first_BT
    median = {name: _median(_norms(x_BTD)[ordinary_BT]) for name, x_BTD in x_LBTD.items()}
    limit = limits(median, rule)
    norm_BT = beyond(list(x_LBTD.values()), list(limit.values()))
    out_BT = special_BT | first_BT | norm_BT
    reasons = {"special": special_BT, "first": first_BT & ~special_BT, "norm": norm_BT & ~special_BT & ~first_BT}
    return PositionFacts(
        median_norm=median,
        limit=limit,
        shares={name: part_BT.float().mean().item() for name, part_BT in reasons.items()},
        variance_share={name: _variance_share(x_BTD[finite_BT], out_BT[finite_BT]) for name, x_BTD in x_LBTD.items()},
        num_positions=special_BT.numel(),
    )


def _median(norms_N: Tensor) -> float:
    return norms_N.median().item() if len(norms_N) else 0.0


def _variance_share(x_ND: Tensor, out_N: Tensor) -> float:
    squares_N = (x_ND.double() - x_ND.double().mean(0)).square().sum(-1)
    return (squares_N[out_N].sum() / squares_N.sum().clamp_min(torch.finfo(torch.float64).tiny)).item()
