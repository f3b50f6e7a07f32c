"""`suite.json`: the partitions of the suites that were trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import RootModel, ValidationError

from groupsae.errors import RunError
from groupsae.partition import Group, Partition

if TYPE_CHECKING:
    from groupsae.records.run_directory import RunDirectory


class SuitesRecord(RootModel[dict[str, tuple[Group, ...]]]):
    """Each suite's groups, by name. Written with the weights (`groupsae.saes.suite`)."""

    path: ClassVar[str] = "suite.json"

    @classmethod
    def find(cls, run: RunDirectory) -> Self | None:
        """The record of a run; None before training. Raises RunError for a damaged file."""
        if not run.file(cls.path).exists():
            return None
        try:
            return cls.model_validate(run.read_json(cls.path))
        except ValidationError as error:
            raise RunError(f"{run.file(cls.path)} is damaged: {error.errors()[0]['msg']}.") from None

    @property
    def partitions(self) -> dict[str, Partition]:
        """The partitions by suite."""
        return {name: Partition(groups) for name, groups in self.root.items()}
