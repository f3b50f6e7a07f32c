"""`plan.json`: what every candidate would cost and give, and which one is taken."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from groupsae.estimate import Estimate
from groupsae.partition import Partition
from groupsae.records.types.candidate import Candidate, Cost
from groupsae.records.types.record import Record, RecordPart, without_empty
from groupsae.records.types.suites import SuiteGroups, suite_partition


class StepRates(RecordPart):
    """Seconds measured on this machine."""

    read_per_token: float
    """The language model, per token of text."""
    step: float
    """One optimizer step of one SAE."""
    batch_tokens: int
    """Tokens of that step."""


class ComputeOptimal(RecordPart):
    """The number of groups that is predicted to give the lowest FVU for a budget, all spent on one suite."""

    budget_flops: float
    """By our count."""
    num_groups: int
    num_tokens: int
    """Tokens that each SAE sees."""
    fvu: Estimate


class PlanRecord(Record):
    """The plan of a run."""

    path: ClassVar[str] = "plan.json"

    method: str
    """The method that the run's own candidates were found by."""
    choice: Candidate
    why: str
    candidates: dict[str, tuple[Candidate, ...]]
    """By method, then by number of groups."""
    suites: dict[str, SuiteGroups]
    """The partitions that the run will train: `groups`, and `baseline` where it is wanted; in a sweep of each variant.
    """
    run: Cost
    """All suites of the run, in one pass, or in `passes`."""
    passes: tuple[tuple[str, ...], ...] = ()
    """In a sweep, the suites that are trained in each pass over the model."""
    suite_costs: dict[str, Cost] = Field(default_factory=dict)
    """In a sweep, each suite trained alone."""
    rates: StepRates | None
    pilot: bool
    """Whether predictions come from a pilot on this model."""
    compute_optimal: ComputeOptimal | None

    @property
    def own_candidates(self) -> tuple[Candidate, ...]:
        """The candidates of the run's own method; only the choice where that is a file."""
        return self.candidates.get(self.method, (self.choice,))

    @property
    def partitions(self) -> dict[str, Partition]:
        """The partitions that the run will train, by suite."""
        return {name: suite_partition(groups) for name, groups in self.suites.items()}

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "passes", "suite_costs")
