"""`eval/interpretability.json`: scores of latents that need no judge, by layer and suite."""

from __future__ import annotations

from typing import ClassVar

from groupsae.records.types.measured import Difference, OverLayers
from groupsae.records.types.record import Record, RecordPart


class ScoreRecord(RecordPart):
    """A score over the latents of an SAE at one layer."""

    mean: float | None
    """None where no latent could be scored."""
    interval: tuple[float, float] | None = None
    scored: int
    """Latents that fire often enough."""


class AgreementRecord(RecordPart):
    """Spearman's rank correlation of a score with a judge's, over latents that have both.

    None where all latents have the same score.
    """

    spearman: float | None
    latents: int


class InterpretabilityRecord(Record):
    """The scores of every suite (docs/metrics.md); differences are from the suite compared with."""

    path: ClassVar[str] = "eval/interpretability.json"

    units: dict[str, str]
    text: str
    num_tokens: int
    min_firings: int
    """Firings that each half of the text must hold for a latent to have an AUROC."""
    suites: dict[str, dict[str, dict[str, ScoreRecord]]]
    """By suite, hookpoint and score."""
    layers: dict[str, dict[str, OverLayers]]
    """Means over the layers, by suite and score."""
    matched: dict[str, dict[str, OverLayers]]
    """The same with the latents weighted so that firing rates are those of the suite compared with."""
    compared_with: str
    differences: dict[str, dict[str, Difference]]
    matched_differences: dict[str, dict[str, Difference]]
    agreement: dict[str, dict[str, AgreementRecord]]
    """With a judge's scores (`eval/interpretation.json`), by method and score; empty without a judge."""
