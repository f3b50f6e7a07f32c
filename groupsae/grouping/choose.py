"""From distances to one partition: a method makes candidates, a rule takes one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groupsae.errors import ConfigError, PartitionError, unknown
from groupsae.grouping import linkage
from groupsae.grouping.criteria import amad
from groupsae.grouping.distances import Distances
from groupsae.grouping.optimal import optimal
from groupsae.hookpoints import expand
from groupsae.partition import Partition

METHODS = ("optimal", "complete", "published", "equal")


def group_layers(
    distances: Distances,
    method: str = "complete",
    groups: int | None = None,
    max_amad: float = 0.2,
    objective: str = "mean-angle",
) -> Partition:
    """The partition of the layers: exactly `groups` of them, or the fewest whose AMAD is below `max_amad`.

    Methods: `optimal` (contiguous, exact, for `objective`), `complete` (linkage on the distances), `published` (as
    published), `equal` (chunks of equal size, which look at no distance: the control). The published
    rule is `max_amad` = 0.2. Raises PartitionError for an impossible number of groups or bound,
    ConfigError for an unknown method or objective.

    >>> group_layers(distances, method="optimal", groups=6)  # doctest: +SKIP
    """
    if groups is not None:
        return make_partition(distances, method, groups, objective)
    return choose(distances, candidates(distances, method, objective), max_amad=max_amad)


def candidates(distances: Distances, method: str, objective: str = "mean-angle") -> list[Partition]:
    """The method's partition for every number of groups, 1 ... L, in this order."""
    return [make_partition(distances, method, groups, objective) for groups in range(1, len(distances) + 1)]


def choose(
    distances: Distances, partitions: Sequence[Partition], groups: int | None = None, max_amad: float = 0.2
) -> Partition:
    """Of candidates, the one with exactly `groups`, or the one with the fewest whose AMAD is below `max_amad`.

    Raises PartitionError if none is, naming what there is.
    """
    ordered = sorted(partitions, key=len)
    if groups is not None:
        found = [partition for partition in ordered if len(partition) == groups]
        if not found:
            sizes = ", ".join(str(len(partition)) for partition in ordered)
            raise PartitionError(f"No candidate has {groups} groups; there are candidates with {sizes}.")
        return found[0]
    return ordered[fewest_below([amad(distances, partition) for partition in ordered], max_amad)]


def fewest_below(amads: Sequence[float], max_amad: float) -> int:
    """The first position whose AMAD is below the bound. Raises PartitionError, naming the smallest, if none is."""
    positive = [value for value in amads if value > 0]
    if not max_amad > 0:
        least = f"; the smallest above 0 is {min(positive):.4g}" if positive else ""
        raise PartitionError(
            f"max_amad = {max_amad} cannot be met: an AMAD below it would be negative{least}. Raise max_amad, "
            "or ask for a number of groups."
        )
    for position, value in enumerate(amads):
        if value < max_amad:
            return position
    raise PartitionError(f"No candidate has an AMAD below {max_amad}; the smallest is {min(amads):.4g}.")


def make_partition(distances: Distances, method: str, groups: int, objective: str = "mean-angle") -> Partition:
    """The method's partition into exactly `groups`. Raises PartitionError, ConfigError as `group_layers`."""
    match method:
        case "optimal":
            return optimal(distances, groups, objective)
        case "complete":
            return linkage.complete(distances, groups)
        case "published":
            return linkage.published(distances, groups)
        case "equal":
            return equal(distances.hookpoints, groups)
    raise ConfigError(unknown("grouping method", method, METHODS))


def equal(hookpoints: Sequence[str], groups: int) -> Partition:
    """Neighboring hookpoints in `groups` chunks whose sizes differ by one at most, longer ones first."""
    linkage.require_possible(groups, len(hookpoints))
    chunks = np.array_split(np.arange(len(hookpoints)), groups)
    return Partition(tuple(tuple(hookpoints[index] for index in chunk) for chunk in chunks))


def read_partition(path: Path, hookpoints: Sequence[str]) -> Partition:
    """A partition written by hand, in TOML or JSON, checked to divide exactly these hookpoints.

        groups = [["layers.0", "layers.1"], ["layers.2"], ["layers.*.mlp"]]

    Wildcards are allowed, neighbors need not be. Raises PartitionError for a file that is none,
    a hookpoint missed, unknown or standing twice, HookpointError for a pattern that selects nothing.
    """
    written = _read(path)
    groups = written.get("groups") if isinstance(written, dict) else written
    if (
        not isinstance(groups, list)
        or not all(isinstance(group, list) for group in groups)
        or not all(isinstance(name, str) for group in groups for name in group)
    ):
        raise PartitionError(
            f'{path} holds no partition. It must read: groups = [["{hookpoints[0]}", ...], ...], names in quotes.'
        )
    try:
        partition = Partition(
            tuple(expand(group, hookpoints, owner=f"the layers that {path} divides") for group in groups)
        )
        return partition.require_exactly(hookpoints)
    except PartitionError as error:
        raise PartitionError(f"{path}: {error}") from None


def _read(path: Path) -> Any:
    parse = json.loads if path.suffix == ".json" else tomllib.loads
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PartitionError(f"There is no file {path}; methods without a file are {', '.join(METHODS)}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PartitionError(f"{path} cannot be read as {path.suffix.strip('.') or 'toml'}: {error}") from None
