"""The group stage: from distances to one partition, with every other that was considered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groupsae.errors import RunError
from groupsae.grouping.choose import METHODS, candidates, choose, read_partition
from groupsae.grouping.criteria import amad, largest_diameter, mean_angle, size_weighted_amad
from groupsae.grouping.distances import Distances
from groupsae.partition import Partition
from groupsae.progress import say
from groupsae.recipes.context import RunContext


def group(bench: RunContext) -> list[str]:
    """The partition, and the candidates of every method: `partition.json`."""
    run, config = bench.run, bench.run.config.group
    distances = read_distances(bench)
    found = {method: candidates(distances, method, config.objective) for method in METHODS}
    if config.method in METHODS:
        chosen = choose(distances, found[config.method], config.groups, config.max_amad)
        why = f"asked for {config.groups} groups"
        if not config.groups:
            why = f"the smallest number of groups with AMAD below {config.max_amad:g}"
    else:
        chosen, why = read_partition(Path(config.method), distances.hookpoints), f"read from {config.method}"
    record = {
        "method": config.method,
        "choice": measures(distances, chosen) | {"why": why},
        "methods": {name: [measures(distances, partition) for partition in each] for name, each in found.items()},
    }
    run.write_json("partition.json", record)
    say(f"group: {chosen} ({why}; AMAD {amad(distances, chosen):.3f})")
    return ["partition.json"]


def read_distances(bench: RunContext) -> Distances:
    """The run's distances. Raises RunError if they are of other hookpoints than the run reads."""
    run = bench.run
    distances = Distances.from_json(run.read_json("distances.json"))
    read = tuple(run.manifest["model"]["hookpoints"])
    if distances.hookpoints != read:
        raise RunError(
            f"{run.file('distances.json')} is of {', '.join(distances.hookpoints)}, but this run reads "
            f"{', '.join(read)}. Measure again: `groupsae distances {run.path} --overwrite`."
        )
    return distances


def measures(distances: Distances, partition: Partition) -> dict[str, Any]:
    """A partition with what its distances say about it."""
    return {
        "num_groups": len(partition),
        "groups": partition.groups,
        "amad": amad(distances, partition),
        "size_weighted_amad": size_weighted_amad(distances, partition),
        "largest_diameter": largest_diameter(distances, partition),
        "mean_angle": mean_angle(distances, partition),
    }


def read_groups(groups: list[list[str]]) -> Partition:
    """A partition as it stands in JSON."""
    return Partition(tuple(map(tuple, groups)))
