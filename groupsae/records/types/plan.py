"""`plan.json`: what every candidate would cost and give, and which one is taken."""

from __future__ import annotations

from typing import ClassVar

from groupsae.estimate import Estimate
from groupsae.partition import Group, Partition
from groupsae.records.types.candidate import Candidate, Cost
from groupsae.records.types.record import Record, RecordPart


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
    suites: dict[str, tuple[Group, ...]]
    """The partitions that the run will train: `groups`, and `baseline` where it is wanted."""
    run: Cost
    """All suites of the run, in one pass."""
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
        return {name: Partition(groups) for name, groups in self.suites.items()}
