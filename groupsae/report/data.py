"""What a run directory holds for a report: each stage's records, or None where a stage is missing."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groupsae.errors import RunError
from groupsae.hookpoints import natural_key
from groupsae.partition import Group, Partition
from groupsae.records import RunDirectory

Record = dict[str, Any]

BASELINE, GROUPS = "baseline", "groups"


@dataclass(frozen=True)
class RunData:
    """The records of one run, as its stages wrote them; None for what is not there yet."""

    name: str
    tokens: Record | None = None
    distances: Record | None = None
    plan: Record | None = None
    train: Record | None = None
    reconstruction: Record | None = None
    losses: Record | None = None
    circuits: Record | None = None
    similarity: Record | None = None
    metrics: list[Record] = field(default_factory=list)
    manifest: Record = field(default_factory=dict)
    max_amad: float | None = None

    @property
    def partitions(self) -> dict[str, Partition]:
        """The trained or planned partitions by suite name, the baseline first."""
        if self.plan is None:
            return {}
        divided = {name: Partition(as_groups(groups)) for name, groups in self.plan["partitions"].items()}
        return dict(sorted(divided.items(), key=lambda item: item[0] != BASELINE))

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """The layers of the run, in natural order; empty before any stage names them."""
        if self.distances is not None:
            return tuple(self.distances["hookpoints"])
        for partition in self.partitions.values():
            return partition.hookpoints
        return ()

    @property
    def chosen(self) -> Partition | None:
        """The division into groups that was chosen, if one was."""
        return self.partitions.get(GROUPS)

    @property
    def candidates(self) -> list[Record]:
        """The divisions that were considered, by their number of groups."""
        found = self.plan["candidates"] if self.plan else []
        return sorted(found, key=lambda candidate: candidate["num_groups"])

    def candidate(self, num_groups: int) -> Record | None:
        """The candidate with this many groups."""
        return next((one for one in self.candidates if one["num_groups"] == num_groups), None)

    @property
    def choice(self) -> Record | None:
        """The chosen division as a candidate; one that was made by hand is measured here."""
        if self.chosen is None:
            return None
        alike = self.candidate(len(self.chosen))
        if alike is not None and Partition(as_groups(alike["groups"])) == self.chosen:
            return alike
        groups = [list(group) for group in self.chosen.groups]
        made = {"num_groups": len(groups), "groups": groups, "mflop_per_token": self.cost(self.chosen)}
        return made | {"amad": self._amad(self.chosen)}

    def _amad(self, partition: Partition) -> float | None:
        if self.distances is None:
            return None
        place = {name: index for index, name in enumerate(self.distances["hookpoints"])}
        matrix = self.distances["matrix"]
        widest = [max(matrix[place[p]][place[q]] for p in group for q in group) for group in partition.groups]
        return sum(widest) / len(widest)

    def cost(self, partition: Partition) -> dict[str, float] | None:
        """MFLOP per token of a partition: the language model once, and the same for every SAE."""
        known = next((one for one in self.candidates if one.get("mflop_per_token")), None)
        if known is None:
            return None
        language_model = known["mflop_per_token"]["language_model"]
        saes = known["mflop_per_token"]["saes"] / known["num_groups"] * len(partition)
        return {"language_model": language_model, "saes": saes, "total": language_model + saes}

    def across(self, suite: str, measure: str) -> Record:
        """A measure over one suite's layers: `mean`, `interval`, `worst`, `worst_layer`, as far as they are known."""
        for record in (self.reconstruction, self.losses):
            found = (record or {}).get("layers", {}).get(suite, {}).get(measure)
            if found:
                return found
        return {}

    def changed(self, suite: str, measure: str) -> Record:
        """How much larger a measure is than for the first suite: `mean` and `interval`, or nothing."""
        for record in (self.reconstruction, self.losses):
            found = (record or {}).get("differences", {}).get(suite, {}).get(measure)
            if found:
                return found
        return {}

    def ceilings(self, suite: str) -> list[float]:
        """What all latents of a suite together do with errors removed, by task that was scored."""
        tasks = (self.circuits or {}).get("tasks", {}).values()
        found = [task["suites"][suite]["error_removed"]["ceiling"] for task in tasks if suite in task["suites"]]
        return [estimate["value"] for estimate in found if estimate]

    def concordances(self, suite: str) -> list[float]:
        """How closely latents of layers' own SAEs are met by those of a suite's, by layer where the two differ."""
        rows = (self.similarity or {}).get("concordance", [])
        between = [row for row in rows if (row["one"]["suite"], row["other"]["suite"]) == (BASELINE, suite)]
        return [row["one_in_other"] for row in between if row["one_in_other"] is not None]

    def measured(self, suite: str, measure: str) -> dict[str, float]:
        """One measure of one suite by layer; layers without a number are left out."""
        values: dict[str, float] = {}
        for record in (self.reconstruction, self.losses):
            for hookpoint, row in ((record or {}).get("suites", {}).get(suite) or {}).items():
                value = number(row.get(measure))
                if not math.isnan(value):
                    values[hookpoint] = value
        return dict(sorted(values.items(), key=lambda item: natural_key(item[0])))


def read_run(run: RunDirectory) -> RunData:
    """Everything a report needs of this run. Raises RunError for a damaged file."""
    optional = {
        "tokens": "tokens/index.json",
        "distances": "distances.json",
        "train": "train.json",
        "reconstruction": "eval/reconstruction.json",
        "losses": "eval/losses.json",
        "circuits": "eval/circuits.json",
        "similarity": "eval/similarity.json",
    }
    records = {key: run.read_json(name) if run.file(name).exists() else None for key, name in optional.items()}
    return RunData(
        name=run.config.name,
        metrics=_read_lines(run, "metrics.jsonl"),
        manifest=run.manifest,
        plan=_divisions(run),
        max_amad=_bound(run),
        **records,
    )


def _divisions(run: RunDirectory) -> Record | None:
    """The divisions that were considered, from the plan or, before there is one, from the group stage.

    What was trained counts for more than what is planned now, which is kept as `planned`.
    """
    if run.file("plan.json").exists():
        found = run.read_json("plan.json")
        plan = found | {"candidates": found.get("candidates") or [], "partitions": found.get("partitions") or {}}
    elif run.file("partition.json").exists():
        found = run.read_json("partition.json")
        chosen = found["choice"]["groups"]
        baseline = {BASELINE: [[name] for group in chosen for name in group]} if run.config.train.baseline else {}
        plan = {
            "method": found["method"],
            "choice": found["choice"],
            "candidates": found["methods"].get(found["method"]) or [found["choice"]],
            "partitions": baseline | {GROUPS: chosen},
        }
    elif run.file("suite.json").exists():  # a warm start has no plan
        divided = run.read_json("suite.json")
        plan = {"method": None, "choice": {"groups": divided[GROUPS]}, "candidates": [], "partitions": divided}
    else:
        return None
    trained = run.read_json("suite.json") if run.file("suite.json").exists() else plan["partitions"]
    return plan | {"partitions": trained, "planned": plan["partitions"]}


def _bound(run: RunDirectory) -> float | None:
    """The bound on AMAD, if it is what decided."""
    config = run.config
    by_file = Path(config.group.method).suffix in (".toml", ".json")
    return None if by_file or config.group.groups is not None or config.plan.chooses else config.group.max_amad


def _read_lines(run: RunDirectory, name: str) -> list[Record]:
    """The log's lines by step. A resumed run may log a step again: its last line counts."""
    path = run.file(name)
    if not path.exists():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    by_step: dict[int, Record] = {}
    for position, line in enumerate(lines):
        try:
            record = json.loads(line)
        except ValueError as error:
            if position == len(lines) - 1:  # a run that was cut off, or is still being written
                break
            raise RunError(f"{path} is damaged in line {position + 1}: {error}.") from None
        by_step[record["step"]] = record
    return [by_step[step] for step in sorted(by_step)]


def as_groups(groups: list[list[str]]) -> tuple[Group, ...]:
    """Groups as JSON holds them, as `Partition` holds them."""
    return tuple(tuple(group) for group in groups)


def number(value: Any) -> float:
    """A number of a record; NaN where the record has none."""
    return float("nan") if value is None else float(value)
