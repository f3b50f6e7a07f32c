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


class RankPlan(RecordPart):
    """What one GPU of a mesh does, calculated."""

    groups: tuple[str, ...]
    """The groups it trains, or holds a slice of."""
    rows_share: float
    """The share of the text that it reads."""
    train_seconds: float
    read_seconds: float
    exchange_seconds: float
    received_bytes: float
    memory_bytes: float


class GpuPlan(RecordPart):
    """The run on GPUs that need not be at hand: calculated, not measured (docs/roofline.md, docs/scale.md)."""

    name: str
    num_gpus: int
    num_nodes: int
    read_nanoseconds: float
    """The language model, per token of text."""
    step_nanoseconds: dict[str, float]
    """One SAE's step, per token it sees, by part."""
    seconds: float
    """The run, where reading, exchanging and training take turns."""
    overlapped_seconds: float
    """The run, if exchanging hides behind training."""
    memory_bytes: float
    """The GPU that needs most."""
    usable_bytes: float
    """What one GPU has for tensors."""
    fits: bool
    """If not, seconds are as if it did."""
    fewest_gpus: int | None
    """The fewest GPUs that the run fits on; None if it fits on none of up to 512."""
    imbalance: float
    """Reading and training of the busiest GPU over the mean."""
    useful_share: float
    """Of the GPUs' time, without waiting, exchanging, and what cuts cost."""
    overlapped_share: float
    array_share: float
    """Of the work of an array of jobs, one per group, without reading that is repeated."""
    array_seconds: float
    """How long that array takes on as many GPUs."""
    cheapest_groups: int
    """The number of groups of the run's own method that takes the fewest hours, at equal tokens per SAE."""
    cheapest_fitting_groups: int | None
    """The same among those that fit."""
    ranks: tuple[RankPlan, ...]


class CachePlan(RecordPart):
    """What a cache of the activations that the run reads would occupy, and when it would pay."""

    dtype: str
    num_tokens: int
    size_bytes: float
    disk_rate: float
    """Bytes per second that the disk is assumed to write and read."""
    trainings: int | None
    """From how many trainings on the cache saves time; None if reading it takes longer than the language model."""


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
    gpu: GpuPlan | None = None
    """Seconds of all costs are of these GPUs, and calculated; without it they are predicted from timed batches."""
    cache: CachePlan | None = None
    """None without rates."""

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
