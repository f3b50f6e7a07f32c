"""The group stage: from distances to one partition, with every other that was considered."""

from __future__ import annotations

from pathlib import Path

from groupsae.config import RunConfig
from groupsae.errors import RunError
from groupsae.grouping.choose import METHODS, candidates, choose, read_partition
from groupsae.grouping.criteria import amad, largest_diameter, mean_angle, size_weighted_amad
from groupsae.grouping.distances import Distances
from groupsae.partition import Partition
from groupsae.progress import say
from groupsae.recipes.context import RunContext
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.distances import DistancesRecord
from groupsae.records.types.partition import PartitionRecord


def group(ctx: RunContext) -> list[str]:
    """The partition, and the candidates of every method: `partition.json`."""
    config = ctx.run.config.group
    distances = read_distances(ctx)
    found = {method: candidates(distances, method, config.objective) for method in METHODS}
    if config.method in METHODS:
        chosen = choose(distances, found[config.method], config.groups, config.max_amad)
        why = f"asked for {config.groups} groups"
        if not config.groups:
            why = f"the smallest number of groups with AMAD below {config.max_amad:g}"
    else:
        chosen, why = read_partition(Path(config.method), distances.hookpoints), f"read from {config.method}"
    record = PartitionRecord(
        choice=_candidate(config.method, distances, chosen),
        why=why,
        candidates={
            name: tuple(_candidate(name, distances, partition) for partition in each) for name, each in found.items()
        },
    )
    say(f"group: {chosen} ({why}; AMAD {record.choice.amad:.3f})")
    return [record.write(ctx.run)]


def read_distances(ctx: RunContext) -> Distances:
    """The run's distances. Raises RunError if they are of other hookpoints than the run reads."""
    run = ctx.run
    distances = Distances.from_json(DistancesRecord.read(run).model_dump())
    model = run.manifest.model
    if model is None:
        raise RunError(f"{run.file('manifest.json')} names no model. Run `groupsae tokens {run.path} --overwrite`.")
    read = model.hookpoints
    if distances.hookpoints != read:
        raise RunError(
            f"{run.file('distances.json')} is of {', '.join(distances.hookpoints)}, but this run reads "
            f"{', '.join(read)}. Measure again: `groupsae distances {run.path} --overwrite`."
        )
    return distances


def _candidate(method: str, distances: Distances, partition: Partition) -> Candidate:
    """A partition with what the distances say of it."""
    return Candidate(
        method=method,
        groups=partition.groups,
        amad=amad(distances, partition),
        size_weighted_amad=size_weighted_amad(distances, partition),
        largest_diameter=largest_diameter(distances, partition),
        mean_angle=mean_angle(distances, partition),
    )


def partition_files(config: RunConfig) -> list[Path]:
    """The file that the partition is read from, if it is made by hand."""
    method = Path(config.group.method)
    return [method] if method.suffix else []
