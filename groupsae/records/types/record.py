"""What every JSON file of a run has in common: a typed model, a path in the run, and one way to read and write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from groupsae.errors import RunError

if TYPE_CHECKING:
    from groupsae.records.run_directory import RunDirectory


class RecordPart(BaseModel):
    """A part of a record. Frozen; an unknown key, a missing one, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Record(RecordPart):
    """One JSON file of a run."""

    path: ClassVar[str]
    """Where the file lies, below the run directory."""
    remedy: ClassVar[str] = "Make it again with --overwrite."
    """What to do about a file of another form."""

    @classmethod
    def read(cls, run: RunDirectory, path: str | None = None) -> Self:
        """The record of a run. Raises RunError if the file is missing, damaged, or of another form."""
        name = path or cls.path
        value = run.read_json(name)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the file"
            raise RunError(f"{run.file(name)} is damaged: {where}: {fault['msg']}. {cls.remedy}") from None

    @classmethod
    def find(cls, run: RunDirectory, path: str | None = None) -> Self | None:
        """The record of a run; None if there is no such file."""
        return cls.read(run, path) if run.file(path or cls.path).exists() else None

    def write(self, run: RunDirectory, path: str | None = None) -> str:
        """Write the file, whole or not at all; returns its name."""
        name = path or self.path
        run.write_json(name, self.model_dump(mode="json"))
        return name


def without_empty(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    """What is written of a record, without those of some keys that hold nothing."""
    return {key: value for key, value in values.items() if key not in keys or value not in (None, (), [], {})}
