"""`eval/summary.json`: each suite in a few numbers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from groupsae.records.types.measured import Interval
from groupsae.records.types.record import Record, RecordPart


class SuiteSummary(RecordPart):
    """One suite in a few numbers; None for what is not known yet. Names, units and formulas: `groupsae.metrics`."""

    name: str
    num_saes: int
    num_layers: int
    mean_fvu: float | None = None
    worst_fvu: float | None = None
    worst_layer: str | None = None
    mean_cosine: float | None = None
    mean_delta_ce: float | None = None
    mean_ce_score: float | None = None
    worst_delta_ce: float | None = None
    mean_kl: float | None = None
    mean_kl_score: float | None = None
    all_layers_delta_ce: float | None = None
    all_layers_kl: float | None = None
    mean_l0: float | None = None
    mean_dead_share: float | None = None
    circuit_ceiling: float | None = None
    mean_concordance: float | None = None
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """95 % intervals, by the name of the number."""
    changes: dict[str, Interval] = Field(default_factory=dict)
    """95 % intervals of how much larger a number is than the first suite's, on the same rows."""
    published_mflop: float | None = None
    """10^6 FLOP per token of text by the published count, trained alone."""
    published_pflop: float | None = None
    """10^15 FLOP of the whole training by the published count."""
    own_mflop: float | None = None
    num_tokens: int | None = None
    memory_bytes: float | None = None
    seconds: float | None = None


class SummaryRecord(Record):
    """Suites on the same tokens: a summary of each."""

    path: ClassVar[str] = "eval/summary.json"

    against: str | None = None
    """The other run, where two are compared."""
    units: dict[str, str]
    suites: dict[str, SuiteSummary]
