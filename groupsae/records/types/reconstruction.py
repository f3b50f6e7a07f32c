"""`eval/reconstruction.json`: how well SAEs reconstruct activations."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from groupsae.records.types.measured import Difference, OverLayers, ReconstructionMetrics
from groupsae.records.types.record import Record, RecordPart, without_empty


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
    references: dict[str, str] = Field(default_factory=dict)
    """In a sweep, by suite the other one that its differences are from instead."""
    differences: dict[str, dict[str, Difference]]
    """By suite and metric."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "references")


class ReconstructionRecord(ReconstructionScope, Record):
    """The results at the run's own positions, and in `other_scope` at the others' choice of them."""

    path: ClassVar[str] = "eval/reconstruction.json"

    units: dict[str, str]
    density_edges: tuple[float, ...]
    other_scope: ReconstructionScope | None = None
