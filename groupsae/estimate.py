"""A value with an interval: what is predicted or measured, and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval. Whoever makes one says which interval it is: 80 % or 95 %."""

    value: float
    low: float
    high: float
