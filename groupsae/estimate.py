"""A value with an interval: what is predicted or measured, and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value, and the interval [low, high] that holds it with the probability that its maker states."""

    value: float
    low: float
    high: float
