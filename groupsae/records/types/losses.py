"""`eval/losses.json`: what splicing SAEs into the language model costs."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from groupsae.records.types.measured import AblatedLoss, Difference, LossMetrics, OverLayers
from groupsae.records.types.record import Record, RecordPart, without_empty


class LossesScope(RecordPart):
    """The results at one choice of positions."""

    scope: str
    num_tokens: int
    num_rows: int
    ce_clean: float
    ablated: dict[str, AblatedLoss]
    """By hookpoint."""
    suites: dict[str, dict[str, LossMetrics]]
    """By suite and hookpoint, one spliced at a time."""
    layers: dict[str, dict[str, OverLayers]]
    groups: dict[str, dict[str, dict[str, OverLayers]]]
    compared_with: str
    references: dict[str, str] = Field(default_factory=dict)
    """In a sweep, by suite the other one that its differences are from instead."""
    differences: dict[str, dict[str, Difference]]
    all_layers: dict[str, LossMetrics]
    """By suite, all of its hookpoints spliced at once."""
    all_layers_ablated: dict[str, AblatedLoss]
    all_layers_differences: dict[str, dict[str, Difference]]

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "references")


class LossesRecord(LossesScope, Record):
    """The results at the run's own positions, and in `other_scope` at the others' choice of them."""

    path: ClassVar[str] = "eval/losses.json"

    units: dict[str, str]
    other_scope: LossesScope | None = None
