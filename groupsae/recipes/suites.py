"""The suites that a run trains, by name: one of each kind, and in a sweep one of each kind for every variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from groupsae.config import Variant
from groupsae.partition import Group, Partition
from groupsae.records import RunDirectory
from groupsae.records.types.partition import PartitionRecord
from groupsae.records.types.plan import PlanRecord
from groupsae.records.types.training import TrainRecord
from groupsae.saes.suite import read_suite_index


def kinds_of(run: RunDirectory) -> dict[str, Partition]:
    """The kinds of suites that this run trains: `groups`, and `baseline` unless it is turned off."""
    record = (PlanRecord if run.config.plan.chooses else PartitionRecord).read(run)
    return with_baseline(run, record.choice.partition)


def with_baseline(run: RunDirectory, partition: Partition) -> dict[str, Partition]:
    """The partition under the name `groups`, and beside it one SAE per layer where the run wants it."""
    baseline = {"baseline": Partition.singletons(partition.hookpoints)} if run.config.train.baseline else {}
    return baseline | {"groups": partition}


def suites_of(kinds: Mapping[str, Partition], variants: Sequence[Variant]) -> dict[str, Partition]:
    """Every kind of suite for every variant, by name: `baseline-k16`, `groups-k16`, `baseline-k32`."""
    return {
        variant.suite(kind): Partition(partition.groups, variant.name)
        for variant in variants
        for kind, partition in kinds.items()
    }


def distinct_groups(partitions: Mapping[str, Partition]) -> tuple[Group, ...]:
    """The groups of all suites, each once: a group of one that both have is trained once."""
    return tuple(dict.fromkeys(group for partition in partitions.values() for group in partition.groups))


@dataclass(frozen=True)
class SweepMember:
    """A trained suite of a run: its kind and, in a sweep, its variant and the setting of it."""

    path: Path
    suite: str
    kind: str
    variant: str
    setting: str

    def same_variant(self, other: SweepMember) -> bool:
        """Whether both are of one variant of one run."""
        return (self.path, self.variant) == (other.path, other.variant)

    def same_but_seed(self, other: SweepMember) -> bool:
        """Whether both are of one kind and setting of one run, with different seeds."""
        alike = (self.path, self.kind, self.setting) == (other.path, other.kind, other.setting)
        return alike and self.variant != other.variant


def members_of(run: RunDirectory) -> dict[str, SweepMember]:
    """The trained suites of a run, by name."""
    record, found = TrainRecord.find(run), {}  # none where the SAEs were imported
    variants = record.variants if record else {}
    for name, partition in read_suite_index(run.path).items():
        variant = partition.variant
        setting = variants[variant].setting if variant in variants else ""
        kind = name.removesuffix(f"-{variant}") if variant else name
        found[name] = SweepMember(run.path, name, kind, variant, setting)
    return found
