"""Equal cost and equal quality: two suites compared where their training curves meet.

A suite's curve is its FVU on the training stream (metrics.jsonl) over FLOPs: each group's FVU counts
once for every layer it serves, FLOPs are tokens times the suite's FLOPs per token when trained
alone. Only the part at the full learning rate is used: a curve before its decay says nothing of
where a shorter run, with its own decay, would have ended. Between two logged points ln FVU is taken
as linear in ln FLOPs; beyond them nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from groupsae.partition import Partition
from groupsae.records.types.summary import MatchedCost
from groupsae.records.types.training import MetricsLine


@dataclass(frozen=True)
class Point:
    """A suite's FVU on the training stream after so many FLOPs."""

    flops: float
    fvu: float


def curve(log: Sequence[MetricsLine], partition: Partition, flops_per_token: float) -> list[Point]:
    """A suite's FVU over FLOPs at the full learning rate; empty where not all of its groups were logged."""
    lines = [line for line in log if all(name in line.groups for name in partition.names)]
    rates = [max(line.groups[name].learning_rate for name in partition.names) for line in lines]
    full = [line for line, rate in zip(lines, rates, strict=True) if rate >= max(rates) * (1 - 1e-9)]
    layers = len(partition.hookpoints)
    sizes = dict(zip(partition.names, map(len, partition.groups), strict=True))
    return [
        Point(
            line.tokens * flops_per_token,
            sum(size * line.groups[name].fvu for name, size in sizes.items()) / layers,
        )
        for line in full
    ]


def match(one: str, other: str, curves: Mapping[str, Sequence[Point]]) -> MatchedCost | None:
    """Two suites where their curves meet; None where one has fewer than two points, or an FVU of 0."""
    pair = [list(curves[name]) for name in (one, other)]
    if any(len(points) < 2 or min(point.fvu for point in points) <= 0 for points in pair):
        return None
    fvu = max(min(point.fvu for point in points) for points in pair)
    flops = min(points[-1].flops for points in pair)
    mine, its = (flops_to(points, fvu) for points in pair)
    at_one, at_other = (fvu_after(points, flops) for points in pair)
    return MatchedCost(
        one=one,
        other=other,
        fvu=fvu,
        flops_at_fvu=(mine, its),
        flops=flops,
        fvu_at_flops=(at_one, at_other),
        cost_ratio=None if mine is None or its is None else mine / its,
    )


def flops_to(points: Sequence[Point], fvu: float) -> float | None:
    """FLOPs after which the curve is first at or below an FVU; None if it begins there or never comes there."""
    for before, after in pairwise(points):
        if before.fvu > fvu >= after.fvu:
            share = math.log(before.fvu / fvu) / math.log(before.fvu / after.fvu)
            return before.flops * (after.flops / before.flops) ** share
    return None


def fvu_after(points: Sequence[Point], flops: float) -> float | None:
    """FVU after so many FLOPs; None outside the curve."""
    for before, after in pairwise(points):
        if before.flops <= flops <= after.flops:
            share = math.log(flops / before.flops) / math.log(after.flops / before.flops)
            return before.fvu * (after.fvu / before.fvu) ** share
    return None
