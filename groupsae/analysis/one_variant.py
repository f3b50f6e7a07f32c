"""The records of one variant of a sweep, as those of a run that trained nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from groupsae.analysis.run_records import RunRecords, suite_kind
from groupsae.records.types.circuits import CircuitsRecord
from groupsae.records.types.plan import PlanRecord
from groupsae.records.types.similarity import SimilarityRecord
from groupsae.records.types.suites import SuitesRecord, suite_groups
from groupsae.records.types.training import MetricsLine, TrainRecord

Found = TypeVar("Found")
_BY_SUITE = (
    "suites", "layers", "groups", "differences", "all_layers", "all_layers_ablated", "all_layers_differences",
)  # fmt: skip


def of_variant(records: RunRecords, variant: str) -> RunRecords:
    """The records of one variant, its suites and SAEs under the names that they would have alone.

    Costs of the whole run stay those of the whole run.
    """
    suites = {
        name: suite_kind(name, partition)
        for name, partition in records.partitions.items()
        if partition.variant == variant
    }
    return replace(
        records,
        variants=("",),
        plan=records.plan and _plan(records.plan, suites),
        train=records.train and _train(records.train, variant),
        trained=records.trained and _trained(records.trained, suites),
        reconstruction=records.reconstruction and _measured(records.reconstruction, suites),
        losses=records.losses and _measured(records.losses, suites),
        circuits=records.circuits and _circuits(records.circuits, suites),
        similarity=records.similarity and _similarity(records.similarity, suites),
        log=tuple(_line(line, variant) for line in records.log),
    )


def _plan(plan: PlanRecord, suites: Mapping[str, str]) -> PlanRecord:
    kept = {kind: suite_groups(plan.partitions[name].base) for name, kind in suites.items() if name in plan.suites}
    costs = _renamed(plan.suite_costs, suites)
    return plan.model_copy(update={"suites": kept, "passes": (), "suite_costs": costs})


def _trained(record: SuitesRecord, suites: Mapping[str, str]) -> SuitesRecord:
    found = record.partitions
    return SuitesRecord({kind: suite_groups(found[name].base) for name, kind in suites.items() if name in found})


def _train(record: TrainRecord, variant: str) -> TrainRecord:
    saes, own = _without_variant(record.saes, variant), record.variants[variant]
    seconds = next((one.seconds for one in record.passes if f"@{variant}" in one.saes[0]), record.seconds)
    update = {"saes": saes, "d_sae": own.d_sae, "k": own.k, "variants": {}, "passes": (), "seconds": seconds}
    return record.model_copy(update=update)


def _line(line: MetricsLine, variant: str) -> MetricsLine:
    return line.model_copy(update={"groups": _without_variant(line.groups, variant)})


def _measured(record: Found, suites: Mapping[str, str]) -> Found:
    """A record of results by suite, and in `other_scope` the same."""
    update: dict[str, Any] = {key: _renamed(getattr(record, key), suites) for key in _BY_SUITE if hasattr(record, key)}
    other = getattr(record, "other_scope", None)
    update |= {"compared_with": next(iter(suites.values()), ""), "references": {}}
    update |= {"other_scope": _measured(other, suites)} if other is not None else {}
    return record.model_copy(update=update)


def _circuits(record: CircuitsRecord, suites: Mapping[str, str]) -> CircuitsRecord:
    tasks = {
        name: task.model_copy(update={"suites": _renamed(task.suites, suites)}) for name, task in record.tasks.items()
    }
    return record.model_copy(update={"tasks": tasks})


def _similarity(record: SimilarityRecord, suites: Mapping[str, str]) -> SimilarityRecord:
    kept = [place for place, one in enumerate(record.dictionaries) if one.suite in suites]

    def renamed(one: Any) -> Any:
        return one.model_copy(update={"suite": suites[one.suite]})

    rows = [row for row in record.concordance if row.one.suite in suites and row.other.suite in suites]
    return record.model_copy(
        update={
            "dictionaries": tuple(renamed(record.dictionaries[place]) for place in kept),
            "mmcs": tuple(tuple(record.mmcs[row][column] for column in kept) for row in kept),
            "mmcs_random": tuple(record.mmcs_random[place] for place in kept),
            "concordance": tuple(
                row.model_copy(update={"one": renamed(row.one), "other": renamed(row.other)}) for row in rows
            ),
            "spreading": _renamed(record.spreading, suites),
            "stability": (),
        }
    )


def _renamed(by_suite: Mapping[str, Any], suites: Mapping[str, str]) -> dict[str, Any]:
    return {suites[name]: found for name, found in by_suite.items() if name in suites}


def _without_variant(by_sae: Mapping[str, Any], variant: str) -> dict[str, Any]:
    end = f"@{variant}"
    return {name.removesuffix(end): found for name, found in by_sae.items() if name.endswith(end)}
