"""`eval/circuits.json`: what a few latents carry of a task."""

from __future__ import annotations

from typing import ClassVar

from groupsae.estimate import Estimate
from groupsae.records.types.record import Record, RecordPart


class CircuitSize(RecordPart):
    """A circuit: `size` latents per hookpoint were asked for, `nodes` latents in all have an effect."""

    size: int
    nodes: int
    weakest_effect: float | None


class CircuitPoint(RecordPart):
    """A circuit's mean logit difference m, and its ratio to the whole."""

    size: int
    m: float
    ratio: Estimate | None
    median: float | None


class CircuitCurve(RecordPart):
    """Ratios by size, and the mean height of the curve."""

    points: tuple[CircuitPoint, ...]
    area: Estimate | None
    area_linear: Estimate | None


class SplicedCircuits(RecordPart):
    """Circuits with the SAEs' errors kept, or removed."""

    empty: float
    ceiling: Estimate | None
    faithfulness: CircuitCurve
    completeness: CircuitCurve


class SuiteCircuits(RecordPart):
    """A suite's circuits on one task."""

    sizes: tuple[CircuitSize, ...]
    error_kept: SplicedCircuits
    error_removed: SplicedCircuits


class TaskSkill(RecordPart):
    """How well the language model itself does the task."""

    accuracy: float
    logit_difference: float
    patch_logit_difference: float


class TaskCircuits(RecordPart):
    """One task. `suites` is empty where it was skipped, and `skipped` says why."""

    given: int
    dropped: dict[str, int]
    num_choose: int
    num_test: int
    skill: TaskSkill | None
    skipped: str | None
    full: float | None
    suites: dict[str, SuiteCircuits]


class CircuitsRecord(Record):
    """All tasks, by name."""

    path: ClassVar[str] = "eval/circuits.json"

    units: dict[str, str]
    tasks: dict[str, TaskCircuits]
