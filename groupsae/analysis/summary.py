"""Each suite in a few numbers, and `eval/summary.json`: the suites of a run, and of another run beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from groupsae.analysis.candidates import view_plan
from groupsae.analysis.matched_cost import Point, curve, match
from groupsae.analysis.run_records import BASELINE, GROUPS, RunRecords
from groupsae.analysis.sweep import seed_stabilities, summarize_sweep
from groupsae.metrics import SUMMARY, units
from groupsae.partition import Partition
from groupsae.records import RunDirectory
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.circuits import CircuitsRecord
from groupsae.records.types.losses import LossesRecord
from groupsae.records.types.measured import Interval, LossMetrics
from groupsae.records.types.reconstruction import ReconstructionRecord
from groupsae.records.types.similarity import SimilarityRecord
from groupsae.records.types.summary import MatchedCost, SuiteSummary, SummaryRecord

AGAINST = "eval/against"

_OVER_LAYERS = {
    "fvu": "mean_fvu",
    "cosine": "mean_cosine",
    "delta_ce": "mean_delta_ce",
    "ce_score": "mean_ce_score",
    "kl": "mean_kl",
    "kl_score": "mean_kl_score",
}
"""Means over layers, each layer counted once: the metric of a layer, and its name in the summary."""
_WITHOUT_INTERVALS = {"l0": "mean_l0", "dead_share": "mean_dead_share"}
_ALL_LAYERS = {"delta_ce": "all_layers_delta_ce", "kl": "all_layers_kl"}


# ---- one run


def summarize(records: RunRecords) -> tuple[SuiteSummary, ...]:
    """A summary of each suite, the baseline first; empty before layers are grouped. Costs are as if trained alone."""
    return tuple(_summarize(records, name, partition) for name, partition in records.partitions.items())


def _summarize(records: RunRecords, name: str, partition: Partition) -> SuiteSummary:
    candidate, mflop = _priced(records, name, partition)
    tokens = records.train.num_tokens if records.train else None
    fvu, delta_ce = records.by_layer(name, "fvu"), records.over_layers(name, "delta_ce")
    worst = max(fvu, key=fvu.__getitem__) if fvu else None
    layers = _OVER_LAYERS | _WITHOUT_INTERVALS
    means = {title: _mean(records.by_layer(name, metric).values()) for metric, title in layers.items()}
    spliced = records.losses.all_layers[name] if records.losses and name in records.losses.all_layers else None
    return SuiteSummary(
        name=name,
        num_saes=len(partition),
        num_layers=len(partition.hookpoints),
        **means,
        worst_fvu=fvu[worst] if worst is not None else None,
        worst_layer=worst,
        worst_delta_ce=delta_ce.worst if delta_ce else None,
        all_layers_delta_ce=spliced.delta_ce if spliced else None,
        all_layers_kl=spliced.kl if spliced else None,
        circuit_ceiling=_mean(_ceilings(records.circuits, name)),
        mean_concordance=_mean(_concordances(records.similarity, name)),
        intervals=_intervals(records, name, spliced),
        changes=_changes(records, name),
        published_mflop=mflop,
        published_pflop=mflop * tokens / 1e9 if mflop is not None and tokens is not None else None,
        own_mflop=candidate.own_mflop if candidate else None,
        num_tokens=tokens,
        memory_bytes=candidate.memory_bytes if candidate else None,
        seconds=records.train.seconds_of(partition) if records.train else None,
        seed_stability=_mean(seed_stabilities(records, [name])),
    )


def _priced(records: RunRecords, name: str, partition: Partition) -> tuple[Candidate | None, float | None]:
    """A suite as a candidate with its cost, and its published 10^6 FLOP per token; in a sweep by its own setting."""
    if records.plan is not None and name in records.plan.suite_costs:
        priced = Candidate(method="", groups=partition.groups, cost=records.plan.suite_costs[name])
        return priced, priced.published_mflop
    if records.is_sweep:
        return None, None
    plan = view_plan(records)
    return plan.of_size(len(partition)), plan.published_mflop(len(partition))


def _intervals(records: RunRecords, suite: str, spliced: LossMetrics | None) -> dict[str, Interval]:
    layers = {title: records.over_layers(suite, metric) for metric, title in _OVER_LAYERS.items()}
    found = {title: one.interval for title, one in layers.items() if one is not None and one.interval}
    together = spliced.intervals if spliced else {}
    return found | {title: together[metric] for metric, title in _ALL_LAYERS.items() if metric in together}


def _changes(records: RunRecords, suite: str) -> dict[str, Interval]:
    found = {title: records.difference(suite, metric) for metric, title in _OVER_LAYERS.items()}
    if records.losses and suite in records.losses.all_layers_differences:
        together = records.losses.all_layers_differences[suite]
        found |= {title: together[metric] for metric, title in _ALL_LAYERS.items() if metric in together}
    return {title: one.interval for title, one in found.items() if one is not None and one.interval}


def _ceilings(record: CircuitsRecord | None, suite: str) -> list[float]:
    """What all latents of a suite together do with errors removed, by task that was scored."""
    tasks = record.tasks.values() if record else ()
    found = [task.suites[suite].error_removed.ceiling for task in tasks if suite in task.suites]
    return [estimate.value for estimate in found if estimate is not None]


def _concordances(record: SimilarityRecord | None, suite: str) -> list[float]:
    """How closely latents of layers' own SAEs are met by a suite's, by layer where the two SAEs differ."""
    rows = record.concordance if record else ()
    alone = BASELINE + suite.removeprefix(GROUPS)
    between = [row for row in rows if (row.one.suite, row.other.suite) == (alone, suite)]
    return [row.one_in_other for row in between if row.one_in_other is not None]


def _mean(values: Collection[float]) -> float | None:
    return fmean(values) if values else None


# ---- the record


def compare(records: RunRecords) -> SummaryRecord:
    """The suites of one run."""
    summaries = summarize(records)
    found = _record(summaries, _curves(records))
    return found.model_copy(update={"sweep": summarize_sweep(records, summaries)})


def compare_with(run: RunDirectory, other: RunDirectory) -> SummaryRecord:
    """The suites of two runs, on the tokens of the first."""
    label = label_of(other.path)
    folder, prefix = f"{AGAINST}/{label}", f"{label}/"
    reconstruction = ReconstructionRecord.find(run, f"{folder}/reconstruction.json")
    losses = LossesRecord.find(run, f"{folder}/losses.json")
    circuits = CircuitsRecord.find(run, f"{folder}/circuits.json")
    similarity = SimilarityRecord.find(run, f"{folder}/similarity.json")
    mine = replace(
        RunRecords.read(run), reconstruction=reconstruction, losses=losses, circuits=circuits, similarity=similarity
    )
    its = replace(
        RunRecords.read(other),
        reconstruction=reconstruction and _own_suites(reconstruction, prefix),
        losses=losses and _own_suites(losses, prefix),
        circuits=circuits and _own_circuits(circuits, prefix),
        similarity=similarity and _own_similarity(similarity, prefix),
    )
    theirs = [one.model_copy(update={"name": prefix + one.name}) for one in summarize(its)]
    curves = _curves(mine) | {prefix + name: points for name, points in _curves(its).items()}
    return _record((*summarize(mine), *theirs), curves, label)


def write_summary(run: RunDirectory, other: RunDirectory | None = None) -> str:
    """Write the summary of what has been evaluated into the folder of its results; returns the file's name."""
    if other is None:
        return compare(RunRecords.read(run)).write(run)
    return compare_with(run, other).write(run, against_path(label_of(other.path)))


def read_against(run: RunDirectory) -> list[SummaryRecord]:
    """The comparisons with other runs that have been made, by the other run's name."""
    paths = sorted(run.file(AGAINST).glob(f"*/{Path(SummaryRecord.path).name}"))
    return [SummaryRecord.read(run, path.relative_to(run.path).as_posix()) for path in paths]


def label_of(other: Path) -> str:
    """What another run is called beside this one: its folder's name."""
    return other.resolve().name


def against_path(label: str) -> str:
    """Where the comparison with another run lies."""
    return f"{AGAINST}/{label}/{Path(SummaryRecord.path).name}"


def _record(
    summaries: tuple[SuiteSummary, ...], curves: dict[str, list[Point]], against: str | None = None
) -> SummaryRecord:
    suites = {one.name: one for one in summaries}
    seeds = any(one.seed_stability is not None for one in summaries)
    known = {name: unit for name, unit in units(SUMMARY).items() if seeds or name != "seed_stability"}
    return SummaryRecord(against=against, units=known, suites=suites, matched_cost=_matched(curves))


def _curves(records: RunRecords) -> dict[str, list[Point]]:
    """Each suite's curve by name, where its cost is known."""
    found = {}
    for name, partition in records.partitions.items():
        candidate, _ = _priced(records, name, partition)
        if candidate is not None and candidate.own_mflop is not None:
            found[name] = curve(records.log, partition, candidate.own_mflop * 1e6)
    return found


def _matched(curves: dict[str, list[Point]]) -> tuple[MatchedCost, ...]:
    """Each suite against the baseline, in a sweep that of its variant, or against the first suite that has a curve.

    Another run's suites, which have a slash in their names, are compared with the first of this one.
    """
    names = list(curves)
    if not names:
        return ()
    first = BASELINE if BASELINE in curves else names[0]
    alone = {name: BASELINE + name.removeprefix(GROUPS) for name in names if name.startswith(f"{GROUPS}-")}
    swept = {one: other for one, other in alone.items() if other in curves}
    others = {name: first for name in names if name != first and (not swept or "/" in name)}
    pairs = swept | others
    found = [match(one, other, curves) for one, other in pairs.items()]
    return tuple(one for one in found if one is not None)


# ---- the part of a comparison that is about one run, its suites under their own names


def _own_suites(record: Any, prefix: str) -> Any:
    keys = ("suites", "layers", "groups", "differences", "all_layers", "all_layers_ablated", "all_layers_differences")
    update = {key: _own(getattr(record, key), prefix) for key in keys if hasattr(record, key)}
    return record.model_copy(update=update)


def _own_circuits(record: CircuitsRecord, prefix: str) -> CircuitsRecord:
    tasks = {name: task.model_copy(update={"suites": _own(task.suites, prefix)}) for name, task in record.tasks.items()}
    return record.model_copy(update={"tasks": tasks})


def _own_similarity(record: SimilarityRecord, prefix: str) -> SimilarityRecord:
    rows = []
    for row in record.concordance:
        if row.one.suite.startswith(prefix) and row.other.suite.startswith(prefix):
            sides = {"one": row.one, "other": row.other}
            rows.append(
                row.model_copy(
                    update={
                        side: name.model_copy(update={"suite": name.suite.removeprefix(prefix)})
                        for side, name in sides.items()
                    }
                )
            )
    return record.model_copy(update={"concordance": tuple(rows)})


def _own(by_suite: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): found for name, found in by_suite.items() if name.startswith(prefix)}
