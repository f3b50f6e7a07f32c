"""`import.json`: where the SAEs of an imported run come from, and what they were there."""

from __future__ import annotations

from typing import Any, ClassVar

from groupsae.records.types.record import Record, RecordPart


class ImportedFile(RecordPart):
    """One SAE as another tool left it."""

    hookpoints: tuple[str, ...]
    """The layers it serves here."""
    places: tuple[str, ...]
    """The same as the files name them."""
    files: tuple[str, ...]
    """What it was read from."""
    architecture: str
    d_sae: int
    k: int | None
    """Active latents per token, if the files say it."""
    scales: tuple[float, ...]
    """What each layer's activations are multiplied by."""
    notes: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    """The tool's own config."""


class ImportRecord(Record):
    """What was imported."""

    path: ClassVar[str] = "import.json"
    remedy: ClassVar[str] = "Import again with --overwrite."

    source: str
    """A folder or a hub id."""
    format: str
    model: str
    groupsae: str
    """The version that imported it."""
    saes: dict[str, ImportedFile]
    """By group name."""
