"""What a run starts from: another run's SAEs, found and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from groupsae.config import WarmStartConfig
from groupsae.errors import ConfigError, RunError
from groupsae.partition import Partition
from groupsae.progress import say
from groupsae.recipes.context import RunContext
from groupsae.records import RunDirectory
from groupsae.saes.suite import Suite, read_suite_index
from groupsae.storage import describe
from groupsae.training.warm_start import WarmStart


def warm_start_of(ctx: RunContext) -> WarmStart | None:
    """What this run's config starts from, or None.

    Raises ConfigError if the source is this run, or its SAEs are of another shape or architecture;
    RunError if it is missing or damaged; PartitionError if it lacks a hookpoint.
    """
    config = ctx.run.config.train.warm_start
    if config.source is None:
        return None
    folder = Path(config.source)
    if folder.resolve() == ctx.run.path.resolve():
        raise ConfigError(f"{folder} cannot start from itself; give the new run another place with --out.")
    start = open_source(config)
    groups = Partition.singletons(ctx.hookpoints).groups
    for sae in ctx.run.config.saes:
        start.require_possible(groups, ctx.width, sae, ctx.run.config.train)
    return start


def announce(start: WarmStart, ctx: RunContext) -> None:
    """Say which settings differ from the source's, and which layers have nothing to start from."""
    groups = Partition.singletons(ctx.hookpoints).groups
    config = ctx.run.config
    found = [line for sae in config.saes for line in start.require_possible(groups, ctx.width, sae, config.train)]
    for difference in dict.fromkeys(found):
        say(f"warm start: {difference}; this run's is used")
    for hookpoint, source in start.sources(ctx.hookpoints).items():
        if source is None:
            where = {"forward": "before", "backward": "after"}[start.direction]
            say(f"warm start: no layer comes {where} {hookpoint}, so it is trained from scratch")


def open_source(config: WarmStartConfig) -> WarmStart:
    """The suite that a config names. Raises RunError if it is not there, or not as its run wrote it."""
    folder = Path(config.source or "")
    if not folder.is_dir():
        raise RunError(f"There is no run directory {folder} to start from.")
    names = list(read_suite_index(folder))
    wanted = "groups" if config.direction == "group" else "baseline"
    name = config.suite or (wanted if wanted in names else names[0])
    if name in names:
        _require_unharmed(folder, read_suite_index(folder)[name].names)
    return WarmStart(Suite.load(folder, name), config.direction, str(folder), name)


def _require_unharmed(folder: Path, groups: Iterable[str]) -> None:
    """Raises RunError for files that are not those that the run's manifest names; a saved suite has no manifest."""
    if not (folder / "config.toml").exists():
        return
    recorded = RunDirectory.open(folder).manifest.files("train")
    files = ["scales.safetensors", *(f"groups/{name}/sae.safetensors" for name in groups)]
    for name in files:
        file = folder / name
        if name in recorded and file.exists() and describe(file)["sha256"] != recorded[name].sha256:
            raise RunError(
                f"{file} is damaged: it is not the file that training wrote. Make it again: "
                f"`groupsae train {folder} --overwrite`."
            )
