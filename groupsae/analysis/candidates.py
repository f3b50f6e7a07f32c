"""The partitions that a run could train, as the plan (or the group stage) describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from groupsae.analysis.run_records import RunRecords
from groupsae.estimate import Estimate
from groupsae.partition import Partition
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.plan import PlanRecord

PUBLISHED_BOUND = 0.2
"""The published rule takes the fewest groups whose AMAD, by complete linkage, is below this (arXiv 2410.21508)."""


@dataclass(frozen=True)
class PlanView:
    """Every candidate: those of the run's own method, those of every method, the choice, and how to compare them."""

    method: str
    own: tuple[Candidate, ...]
    """Of the run's own method, by number of groups."""
    methods: dict[str, tuple[Candidate, ...]]
    choice: Candidate | None
    """The chosen partition; made by hand if it is not among `own`."""
    published: Candidate | None
    """What the published rule takes; None unless distances are angular."""
    why: str = ""
    calculated: bool = False
    """Whether seconds are of GPUs that need not be at hand, which no measured seconds can stand beside."""

    @cached_property
    def every(self) -> tuple[Candidate, ...]:
        """The candidates of every method, the run's own first."""
        others = [one for name, found in self.methods.items() if name != self.method for one in found]
        return (*self.own, *others)

    @property
    def has_costs(self) -> bool:
        """Whether the plan knows what candidates cost; FLOPs may be unknown all the same."""
        return any(one.cost is not None for one in self.own)

    @property
    def quality(self) -> str | None:
        """The metric that is predicted of every candidate: `fvu` after a pilot, else `fvu_increase`, or None."""
        return next((key for key in ("fvu", "fvu_increase") if self.own and all(map(_reader(key), self.own))), None)

    @property
    def cost(self) -> str | None:
        """What candidates are compared by: `seconds` where they are predicted for this machine, else `own_mflop`."""
        keys = ("own_mflop",) if self.calculated else ("seconds", "own_mflop")
        return next((key for key in keys if all(getattr(one, key) is not None for one in self.every)), None)

    @property
    def singletons(self) -> Candidate | None:
        """One SAE per layer, by whatever method."""
        return next((one for one in self.every if set(map(len, one.groups)) == {1}), None)

    def of_size(self, num_groups: int) -> Candidate | None:
        """A candidate with this many groups, by whatever method: cost depends on little else."""
        return next((one for one in self.every if one.num_groups == num_groups), None)

    def published_mflop(self, num_groups: int) -> float | None:
        """10^6 FLOP per token by the published count, which is linear in the number of groups: C = A + T G."""
        known = ((one.cost.published_mflop, one.num_groups) for one in self.own if one.cost is not None)
        cost, groups = next(((cost, groups) for cost, groups in known if cost is not None), (None, 1))
        return None if cost is None else cost.language_model + cost.saes / groups * num_groups

    def predicted(self, candidate: Candidate | None) -> Estimate | None:
        """The predicted quality of a candidate, on the scale that all share."""
        return None if candidate is None or self.quality is None else getattr(candidate, self.quality)


def view_plan(records: RunRecords) -> PlanView:
    """The candidates of a run; without plan or grouping there are none."""
    if records.plan is not None:
        return _view(records, records.plan, records.plan.own_candidates)
    if records.grouping is not None:
        found = records.grouping
        method = found.choice.method
        return _view(records, found, found.candidates.get(method, (found.choice,)))
    return PlanView("the choice", (), {}, _choice(records, (), None), None)


def view_record(plan: PlanRecord) -> PlanView:
    """The candidates of a plan by itself."""
    return view_plan(RunRecords(name="", plan=plan))


def _view(records: RunRecords, record: object, own: Sequence[Candidate]) -> PlanView:
    own = tuple(sorted(own, key=lambda one: one.num_groups))
    method = record.method if isinstance(record, PlanRecord) else record.choice.method
    methods = {name: tuple(found) for name, found in record.candidates.items() if found} or {method: own}
    angular = records.distances is None or records.distances.metric == "angular"
    complete = methods["complete"] if angular and "complete" in methods else ()
    published = next((one for one in complete if one.amad is not None and one.amad < PUBLISHED_BOUND), None)
    calculated = isinstance(record, PlanRecord) and record.gpu is not None
    return PlanView(method, own, methods, _choice(records, own, record.choice), published, record.why, calculated)


def _choice(records: RunRecords, own: Sequence[Candidate], planned: Candidate | None) -> Candidate | None:
    """The candidate that was trained or is chosen; one that no method found is described by the distances."""
    if records.chosen is None:
        return None
    known = [*own, *([planned] if planned is not None else [])]
    alike = next((one for one in known if one.partition == records.chosen), None)
    if alike is not None:
        return alike
    return Candidate(method="by hand", groups=records.chosen.groups, amad=_amad(records, records.chosen))


def _amad(records: RunRecords, partition: Partition) -> float | None:
    if records.distances is None:
        return None
    place = {name: index for index, name in enumerate(records.distances.hookpoints)}
    matrix = records.distances.matrix
    return fmean(max(matrix[place[p]][place[q]] for p in group for q in group) for group in partition.groups)


def _reader(key: str):
    return lambda candidate: getattr(candidate, key)
