"""`manifest.json`: what a run has done, from what, and where it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, StrictInt

from groupsae.records.types.record import Record, RecordPart
from groupsae.storage import digest

if TYPE_CHECKING:
    from groupsae.records.run_directory import RunDirectory


class FileFacts(RecordPart):
    """A file that a stage wrote."""

    bytes: StrictInt
    sha256: str


class InputFacts(RecordPart):
    """A file from outside the run that a stage read."""

    bytes: StrictInt
    modified: StrictInt
    """Its date, in nanoseconds."""
    sha256: str | None = None
    """None for a file that is too large to be hashed."""


class StageRecord(RecordPart):
    """A finished stage, or a part of a stage that is recorded by itself."""

    fingerprint: str
    """The config that it was made from, as a hash."""
    made_from: dict[str, str]
    """The earlier stages' results, each as one hash of its files."""
    beside: str = ""
    """What else a part was made from, as a hash."""
    seconds: float
    finished: float
    """When, in seconds since 1970."""
    files: dict[str, FileFacts]
    """What it wrote, by path below the run."""
    inputs: dict[str, InputFacts] = Field(default_factory=dict)
    """What it read from outside, by absolute path."""

    @property
    def files_digest(self) -> str:
        """All files as one hash."""
        return digest({name: facts.model_dump() for name, facts in self.files.items()})


class ModelRecord(RecordPart):
    """The language model of a run."""

    name: str
    kind: str | None = None
    """The class that transformers loads it as."""
    blocks: int | None = None
    d_model: int | None = None
    parameters: int | None = None
    dtype: str | None = None
    """The precision in which activations are read for training, as model.dtype says or its `auto` found."""
    hookpoints: tuple[str, ...] = ()
    """Those that the run reads."""
    commit: str | None = None
    gguf: dict[str, Any] | None = None
    """What a GGUF file says of itself, if the model was read from one."""


class ManifestRecord(Record):
    """Finished stages and parts of stages, the model, and what the run was made with."""

    path: ClassVar[str] = "manifest.json"
    remedy: ClassVar[str] = "Remove it to start again."

    stages: dict[str, StageRecord] = Field(default_factory=dict)
    parts: dict[str, StageRecord] = Field(default_factory=dict)
    """By the file that the part writes."""
    model: ModelRecord | None = None
    device: str | None = None
    environment: dict[str, str | int | None] = Field(default_factory=dict)
    """Versions, hardware and commit."""

    def files(self, stage: str) -> dict[str, FileFacts]:
        """What a stage wrote; nothing if it has not run."""
        return self.stages[stage].files if stage in self.stages else {}

    def write(self, run: RunDirectory, path: str | None = None) -> str:
        """Write the file, without what nobody has set; returns its name."""
        name = path or self.path
        run.write_json(name, self.model_dump(mode="json", exclude_unset=True))
        return name

    def with_done(self, name: str, done: StageRecord, *, part: bool) -> ManifestRecord:
        """The manifest with another finished stage, or part of a stage."""
        kind = "parts" if part else "stages"
        return self.model_copy(update={kind: getattr(self, kind) | {name: done}})


class StageStatus(RecordPart):
    """A stage as `groupsae show --json` tells it."""

    status: str
    """`done`, `stale` or `missing`."""
    seconds: float | None = None
    files: dict[str, FileFacts] = Field(default_factory=dict)
