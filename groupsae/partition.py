"""A partition: the division of hookpoints into groups, each group sharing one SAE."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from groupsae.errors import PartitionError
from groupsae.hookpoints import natural_key

Group = tuple[str, ...]
LONGEST_NAME = 255


@dataclass(frozen=True)
class Partition:
    """Groups of hookpoints: every hookpoint in exactly one group.

    Groups and their members are kept in natural order (by their first hookpoint), so two equal
    divisions are equal objects. Groups need not be contiguous. Raises PartitionError for an
    empty group, or a hookpoint that stands twice.

    In a sweep `variant` says which of its variants the SAEs are of; it is part of their names.
    """

    groups: tuple[Group, ...]
    variant: str = ""

    def __post_init__(self) -> None:
        if any(len(name) > LONGEST_NAME for group in self.groups for name in group):
            raise PartitionError(
                f"A hookpoint's name has more than {LONGEST_NAME} characters; no module's path is so long."
            )
        groups = [tuple(sorted(group, key=natural_key)) for group in self.groups]
        if not groups or not all(groups):
            raise PartitionError("A partition needs at least one group, and each group at least one hookpoint.")
        members = [hookpoint for group in groups for hookpoint in group]
        twice = sorted({name for name in members if members.count(name) > 1}, key=natural_key)
        if twice:
            raise PartitionError(f"{', '.join(twice)} stand more than once; each hookpoint belongs to one group.")
        object.__setattr__(self, "groups", tuple(sorted(groups, key=lambda group: natural_key(group[0]))))

    @classmethod
    def singletons(cls, hookpoints: Iterable[str]) -> Partition:
        """One group per hookpoint: one SAE per layer, the baseline."""
        return cls(tuple((hookpoint,) for hookpoint in hookpoints))

    @classmethod
    def from_labels(cls, hookpoints: Sequence[str], labels: Sequence[int]) -> Partition:
        """The partition in which hookpoints with equal labels share a group."""
        if len(hookpoints) != len(labels):
            raise PartitionError(f"{len(hookpoints)} hookpoints but {len(labels)} labels; give one label each.")
        groups: dict[int, list[str]] = {}
        for hookpoint, label in zip(hookpoints, labels, strict=True):
            groups.setdefault(int(label), []).append(hookpoint)
        return cls(tuple(map(tuple, groups.values())))

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """All hookpoints, in natural order."""
        return tuple(sorted((name for group in self.groups for name in group), key=natural_key))

    @property
    def labels(self) -> tuple[int, ...]:
        """The number of each hookpoint's group, in the order of `hookpoints`."""
        return tuple(self.index_of(hookpoint) for hookpoint in self.hookpoints)

    @property
    def names(self) -> tuple[str, ...]:
        """The SAEs' names, as used for folders: `layers.2`, `layers.3-5`, `layers.0+4`, in a sweep `layers.2@k32`."""
        return tuple(sae_name(group, self.variant) for group in self.groups)

    @property
    def base(self) -> Partition:
        """The same groups without a variant."""
        return Partition(self.groups)

    def index_of(self, hookpoint: str) -> int:
        """The number of the group that holds this hookpoint."""
        for index, group in enumerate(self.groups):
            if hookpoint in group:
                return index
        raise PartitionError(f"{hookpoint!r} is in no group; the partition has {', '.join(self.hookpoints)}.")

    def group_of(self, hookpoint: str) -> Group:
        """The group that holds this hookpoint."""
        return self.groups[self.index_of(hookpoint)]

    def around(self, hookpoints: Iterable[str]) -> Partition:
        """The groups that hold these hookpoints, as a partition of their own."""
        numbers = {self.index_of(hookpoint) for hookpoint in hookpoints}
        return Partition(tuple(self.groups[number] for number in sorted(numbers)), self.variant)

    def require_exactly(self, hookpoints: Iterable[str]) -> Partition:
        """This partition, if it divides exactly these hookpoints; otherwise PartitionError says what differs."""
        wanted, given = set(hookpoints), set(self.hookpoints)
        if wanted == given:
            return self
        missing = sorted(wanted - given, key=natural_key)
        unknown = sorted(given - wanted, key=natural_key)
        parts = [f"misses {', '.join(missing)}"] * bool(missing) + [f"names unknown {', '.join(unknown)}"] * bool(
            unknown
        )
        allowed = ", ".join(sorted(wanted, key=natural_key))
        raise PartitionError(f"The partition {' and '.join(parts)}; it must hold exactly {allowed}.")

    def __len__(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        return " ".join(f"[{name}]" for name in self.names)


def group_name(group: Group) -> str:
    """A group's name: its hookpoints' common path with their numbers, fit for a folder.

    Runs of numbers are joined (`layers.3-5`), others listed (`layers.0+4`); paths that differ
    in more than one number are written out.
    """
    if len(group) == 1:
        return group[0]
    parsed = [match for name in group if (match := re.fullmatch(r"(\D*)(\d+)(.*)", name))]
    if len(parsed) == len(group) and len({(m[1], m[3]) for m in parsed}) == 1:
        numbers = [int(m[2]) for m in parsed]
        return f"{parsed[0][1]}{_spans(numbers)}{parsed[0][3]}"
    return "+".join(group)


def sae_name(group: Group, variant: str = "") -> str:
    """The name of a group's SAE: the group's, and in a sweep its variant's behind an @."""
    return f"{group_name(group)}@{variant}" if variant else group_name(group)


def _spans(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "+".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
