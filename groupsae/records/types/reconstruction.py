"""`eval/reconstruction.json`: how well SAEs reconstruct activations."""

from __future__ import annotations

from typing import ClassVar

from groupsae.records.types.measured import Difference, OverLayers, ReconstructionMetrics
from groupsae.records.types.record import Record, RecordPart


class ReconstructionScope(RecordPart):
    """The results at one choice of positions."""

    scope: str
    num_tokens: int
    num_rows: int
    suites: dict[str, dict[str, ReconstructionMetrics]]
    """By suite and hookpoint."""
    layers: dict[str, dict[str, OverLayers]]
    """By suite and metric."""
    groups: dict[str, dict[str, dict[str, OverLayers]]]
    """By suite, group and metric."""
    compared_with: str
    """The suite that `differences` are from."""
    differences: dict[str, dict[str, Difference]]
    """By suite and metric."""


class ReconstructionRecord(ReconstructionScope, Record):
    """The results at the run's own positions, and in `other_scope` at the others' choice of them."""

    path: ClassVar[str] = "eval/reconstruction.json"

    units: dict[str, str]
    density_edges: tuple[float, ...]
    other_scope: ReconstructionScope | None = None
