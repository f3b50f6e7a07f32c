"""What a comparison of suites says in numbers: quality beside cost of each, and readings at equal cost and quality."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from groupsae.records import RunDirectory
from groupsae.report.data import BASELINE, Record, RunData, read_run
from groupsae.report.outlook import look_ahead
from groupsae.report.readings import Point, Readings, curve, read_curves
from groupsae.report.summary import SuiteSummary, summarize_data

SUMMARY = "summary.json"
AGAINST = "eval/against"
UNITS = {
    "mflop_per_token": "10^6 FLOP per token of the language model, published count: C = A + T G",
    "own_mflop_per_token": "10^6 FLOP per token of the language model, as computed",
    "total_pflop": "10^15 FLOP, published count",
    "seconds": "seconds, measured, as if trained alone",
    "num_tokens": "tokens that each SAE was trained on",
    "memory_bytes": "bytes, predicted by the plan",
}


@dataclass(frozen=True)
class Comparison:
    """Suites on the same tokens: a summary of each, and readings of each against the first."""

    label: str
    summaries: tuple[SuiteSummary, ...]
    readings: tuple[Readings, ...]

    def as_record(self) -> Record:
        """The comparison as JSON holds it."""
        return {
            "against": self.label or None,
            "units": UNITS,
            "suites": {one.name: asdict(one) for one in self.summaries},
            "readings": [asdict(one) | {"cost_ratio": one.cost_ratio} for one in self.readings],
        }


def label_of(other: Path) -> str:
    """What another run is called beside this one: its folder's name."""
    return other.resolve().name


def compare(data: RunData) -> Comparison:
    """The suites of one run."""
    curves = _curves(data)
    return Comparison("", tuple(summarize_data(data)), _readings(curves))


def compare_with(run: RunDirectory, other: RunDirectory) -> Comparison:
    """The suites of two runs, on the tokens of the first."""
    label = label_of(other.path)
    folder = f"{AGAINST}/{label}"
    records = {name: _read(run, f"{folder}/{name}.json") for name in _OF_RUN}
    mine = replace(read_run(run), **records)
    its = replace(read_run(other), **{name: of(records[name], f"{label}/") for name, of in _OF_RUN.items()})
    summaries = [*summarize_data(mine), *(replace(one, name=f"{label}/{one.name}") for one in summarize_data(its))]
    curves = _curves(mine) | {f"{label}/{name}": points for name, points in _curves(its).items()}
    return Comparison(label, tuple(summaries), _readings(curves))


def write_comparison(run: RunDirectory, other: RunDirectory | None = None) -> str:
    """Writes the comparison of what has been evaluated into the folder of its results; returns the file's name."""
    found = compare(read_run(run)) if other is None else compare_with(run, other)
    name = f"{AGAINST}/{found.label}/{SUMMARY}" if found.label else f"eval/{SUMMARY}"
    run.write_json(name, found.as_record())
    return name


def read_against(run: RunDirectory) -> list[Comparison]:
    """The comparisons with other runs that have been made, by the other run's name."""
    found = []
    for path in sorted(run.file(AGAINST).glob(f"*/{SUMMARY}")):
        record = run.read_json(path.relative_to(run.path).as_posix())
        summaries = tuple(_suite_summary(suite) for suite in record["suites"].values())
        readings = tuple(_reading(one) for one in record["readings"])
        found.append(Comparison(record["against"], summaries, readings))
    return found


def _suite_summary(record: Record) -> SuiteSummary:
    known = {one.name for one in fields(SuiteSummary)}
    return SuiteSummary(**{key: value for key, value in record.items() if key in known})


def _reading(record: Record) -> Readings:
    pairs = {key: tuple(record[key]) for key in ("flops_at_fvu", "fvu_at_flops")}
    return Readings(**{key: value for key, value in record.items() if key != "cost_ratio"} | pairs)


def _read(run: RunDirectory, name: str) -> Record | None:
    return run.read_json(name) if run.file(name).exists() else None


def _measures_of_run(record: Record | None, prefix: str) -> Record | None:
    """The part of a comparison's record that is about the suites whose names begin so, under their own names."""
    keys = ("suites", "layers", "groups", "differences", "all_layers", "all_layers_differences")
    return record and record | {key: _own(record[key], prefix) for key in keys if key in record}


def _circuits_of_run(record: Record | None, prefix: str) -> Record | None:
    """The same of circuits."""
    return record and record | {
        "tasks": {name: task | {"suites": _own(task["suites"], prefix)} for name, task in record["tasks"].items()}
    }


def _similarity_of_run(record: Record | None, prefix: str) -> Record | None:
    """The same of what fires together."""

    def named(one: Record) -> Record:
        return one | {"suite": one["suite"].removeprefix(prefix)}

    rows = [
        row | {side: named(row[side]) for side in ("one", "other")}
        for row in (record or {}).get("concordance", [])
        if all(row[side]["suite"].startswith(prefix) for side in ("one", "other"))
    ]
    return record and record | {"concordance": rows}


_OF_RUN = {
    "reconstruction": _measures_of_run,
    "losses": _measures_of_run,
    "circuits": _circuits_of_run,
    "similarity": _similarity_of_run,
}
"""The parts of an evaluation, and what of a comparison's record is about one of the runs."""


def _own(by_suite: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): found for name, found in by_suite.items() if name.startswith(prefix)}


def _curves(data: RunData) -> dict[str, list[Point]]:
    """Each suite's curve by name, where its cost is known."""
    outlook, found = look_ahead(data), {}
    for name, partition in data.partitions.items():
        offer = outlook.of_size(len(partition))
        if offer is not None and offer.own_mflop is not None:
            found[name] = curve(data, partition, offer.own_mflop * 1e6)
    return found


def _readings(curves: dict[str, list[Point]]) -> tuple[Readings, ...]:
    """Each suite against the baseline, or against the first suite that has a curve."""
    names = list(curves)
    if not names:
        return ()
    first = BASELINE if BASELINE in curves else names[0]
    found = [read_curves(name, first, curves) for name in names if name != first]
    return tuple(one for one in found if one is not None)
