"""`suite.json`: the partitions of the suites that were trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import RootModel, ValidationError

from groupsae.errors import RunError
from groupsae.partition import Group, Partition
from groupsae.records.types.record import RecordPart

if TYPE_CHECKING:
    from groupsae.records.run_directory import RunDirectory


class VariantGroups(RecordPart):
    """The groups of a suite whose SAEs are of one variant of a sweep."""

    groups: tuple[Group, ...]
    variant: str
    """What follows the @ in the names of their SAEs."""


SuiteGroups = tuple[Group, ...] | VariantGroups
"""A suite's groups; in a sweep with the variant."""


def suite_groups(partition: Partition) -> SuiteGroups:
    """A partition as records hold it."""
    if not partition.variant:
        return partition.groups
    return VariantGroups(groups=partition.groups, variant=partition.variant)


def suite_partition(groups: SuiteGroups) -> Partition:
    """The partition that a record holds."""
    return Partition(groups.groups, groups.variant) if isinstance(groups, VariantGroups) else Partition(groups)


class SuitesRecord(RootModel[dict[str, SuiteGroups]]):
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
        return {name: suite_partition(groups) for name, groups in self.root.items()}
