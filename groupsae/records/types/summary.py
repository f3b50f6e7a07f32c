"""`eval/summary.json`: each suite in a few numbers."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from groupsae.records.types.measured import Interval
from groupsae.records.types.record import Record, RecordPart, without_empty


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
    seed_stability: float | None = None
    """In a sweep over seeds, the share of latents that another seed finds again."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "seed_stability")


class OverSeeds(RecordPart):
    """A number of one setting: its mean over the seeds, the smallest and the largest."""

    mean: float
    low: float
    high: float


class SettingSummary(RecordPart):
    """One kind of suite under one SAE setting of a sweep, over all seeds; None for what is not known yet."""

    kind: str
    """`groups` or `baseline`."""
    setting: str
    """What differs from the other settings: `k32`. Empty where only seeds differ."""
    suites: tuple[str, ...]
    """One per seed."""
    k: int
    d_sae: int
    mean_l0: OverSeeds | None = None
    mean_fvu: OverSeeds | None = None
    mean_delta_ce: OverSeeds | None = None
    seed_stability: float | None = None
    """Share of latents that another seed finds again: mean over SAEs and pairs of seeds."""
    on_front: bool = False
    """Whether no other setting has a lower mean FVU at the same or a lower mean L0."""


class SummaryRecord(Record):
    """Suites on the same tokens: a summary of each."""

    path: ClassVar[str] = "eval/summary.json"

    against: str | None = None
    """The other run, where two are compared."""
    units: dict[str, str]
    suites: dict[str, SuiteSummary]
    sweep: tuple[SettingSummary, ...] = ()
    """The settings of a sweep."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "sweep")
