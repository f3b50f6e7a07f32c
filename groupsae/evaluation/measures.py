"""Metrics as numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from groupsae.evaluation.intervals import RowEstimate


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Metrics as numbers, with 95 % intervals over rows where they have one (`groupsae.evaluation.intervals`)."""

    intervals: dict[str, tuple[float, float]]
    estimates: dict[str, RowEstimate] = field(compare=False, repr=False)

    def as_record(self) -> dict[str, Any]:
        """Every metric by name, and their intervals, as JSON holds them."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "estimates"}


def numbers(estimates: Mapping[str, RowEstimate]) -> dict[str, Any]:
    """The arguments of a `Measured`: each metric's value, `intervals` and `estimates`."""
    intervals = {name: one.interval for name, one in estimates.items()}
    return {
        **{name: one.value for name, one in estimates.items()},
        "intervals": {name: interval for name, interval in intervals.items() if interval},
        "estimates": dict(estimates),
    }
