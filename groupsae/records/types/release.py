"""`release.json`: what a suite that is published is, and how good it is."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from groupsae.records.types.lineage import Lineage
from groupsae.records.types.manifest import FileFacts
from groupsae.records.types.measured import Interval
from groupsae.records.types.record import Record, RecordPart


class ReleasedModel(RecordPart):
    """The language model that the suite reads."""

    name: str
    """A hub id; of a model on a disk the name of its directory."""
    revision: str | None = None
    kind: str | None = None
    d_model: int | None = None
    blocks: int | None = None


class ReleasedText(RecordPart):
    """The text that the SAEs were trained on."""

    sources: tuple[str, ...]
    """Of files and folders their names only."""
    context_length: int
    training_tokens: int | None = None
    """Tokens of text there are; an SAE may have seen fewer, or some of them more than once."""
    training_documents: int | None = None


class ReleasedSAE(RecordPart):
    """The SAE of one group."""

    layers: tuple[str, ...]
    architecture: str
    d_sae: int
    k: int | None = None
    tokens: int | None = None
    """Tokens that it was trained on."""
    lineage: Lineage | None = None


class ReleasedLayer(RecordPart):
    """How good the SAE of a layer is; None for what was not evaluated (docs/metrics.md)."""

    group: str
    fvu: float | None = None
    delta_ce: float | None = None
    l0: float | None = None
    dead_share: float | None = None
    intervals: dict[str, Interval] = Field(default_factory=dict)


class ReleaseRecord(Record):
    """A published suite."""

    path: ClassVar[str] = "release.json"
    remedy: ClassVar[str] = "Pull the release again."

    format: Literal[1] = 1
    groupsae: str | None = None
    """The version that wrote it."""
    suite: str
    model: ReleasedModel
    text: ReleasedText
    license: str | None = None
    per_layer: tuple[str, ...] = ()
    """What layers of a group have of their own."""
    saes: dict[str, ReleasedSAE]
    """By group."""
    layers: dict[str, ReleasedLayer]
    evaluated_tokens: int | None = None
    all_layers_delta_ce: float | None = None
    """With the SAEs of all layers spliced in at once."""
    files: dict[str, FileFacts] = Field(default_factory=dict)
    """Every other file of the release, by its path."""
