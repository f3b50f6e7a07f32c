"""Runs stages: `run_all` those that are missing, `run_stage` one of them.

A stage reads what those before it wrote, writes its own files, and is then recorded in the manifest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from groupsae.analysis.alarms import alarms
from groupsae.analysis.run_records import RunRecords
from groupsae.config import differing_keys
from groupsae.distributed.launch import current_ranks
from groupsae.errors import GroupsaeError, RunError
from groupsae.lock import hold
from groupsae.progress import say
from groupsae.recipes.agreement import AGREE, seen_of
from groupsae.recipes.context import RunContext
from groupsae.recipes.eval import evaluate, require_parts, wanted_parts
from groupsae.recipes.export import mark_stale_exports
from groupsae.recipes.passes import unfinished
from groupsae.recipes.warm_start import warm_start_of
from groupsae.records import RunDirectory
from groupsae.records.stages import has_effect, stage_named
from groupsae.storage import sweep

Recipe = Callable[[RunContext], list[str] | None]
"""Does a stage, returns the names of the files it wrote; None if a part of the stage is still missing."""


def run_all(run: RunDirectory, *, until: str = "report", overwrite: bool = False) -> None:
    """Every stage up to `until` that is not done yet, in order; with `overwrite`, those of another config again."""
    wanted = run.own_stages[: run.own_stages.index(until) + 1]
    unfinished = [stage for stage in wanted if run.status(stage) != "done"]
    for stage in unfinished:
        _require_free(run, stage, overwrite)
    if not unfinished:
        say(f"{run.path} is complete." if until == "report" else f"{run.path} is complete up to {until}.")
        return
    ctx = RunContext(run, overwrite)
    ctx.require_possible()
    if "eval" in unfinished:
        ctx.require_causal()
    warm_start_of(ctx)
    with alone(run):
        for stage in dict.fromkeys((*unfinished, until)):
            # Somebody else may have done it before we had the lock.
            if ctx.ranks.from_first(stage == "report" or run.status(stage) != "done"):
                _make(ctx, stage)


def run_stage(run: RunDirectory, stage: str, *, overwrite: bool = False) -> None:
    """One stage. If it is done already, it is left as it is, or with `overwrite` made again.

    Raises RunError, before anything is computed, if an earlier stage is missing, or if results made from another
    config would be replaced without `overwrite`.
    """
    do_stage(RunContext(run, overwrite), stage)


def do_stage(ctx: RunContext, stage: str) -> None:
    """The same in a context, which keeps what it has loaded for later."""
    run, overwrite = ctx.run, ctx.overwrite
    run.require_own(stage)
    if run.status(stage) == "done" and not overwrite and stage != "report":
        say(f"{stage}: done already (--overwrite makes it again)")
        return
    _require_free(run, stage, overwrite)
    if not stage_named(stage).standalone:
        run.require(*run.before(stage))
    with alone(run):
        _make(ctx, stage)


@contextlib.contextmanager
def alone(run: RunDirectory) -> Iterator[None]:
    """While the block runs nobody else works on the run, and what killed processes left half-written is gone.

    Of several ranks only rank 0 holds the lock and writes the run's files. Raises RanksError if they do not agree.
    """
    ranks = current_ranks()
    run.writable = ranks.first
    with hold(run.path) if ranks.first else contextlib.nullcontext():
        if ranks.first:
            sweep(run.path)
        ranks.require_alike(seen_of(run), remedy=AGREE)
        yield
        ranks.barrier()


def run_parts(run: RunDirectory, parts: Sequence[str], against: Path | None, *, overwrite: bool = False) -> None:
    """Some parts of the eval stage, or all if none is named; with `against`, side by side with another run's suites.

    Parts that are done are left as they are, or with `overwrite` made again. Raises as `run_stage`
    does; RunError for a run that cannot be compared with, ConfigError for an unknown part.
    """
    require_parts(parts)
    ctx = RunContext(run, overwrite)
    wanted_parts(ctx, parts, against)
    run.require(*run.before("eval"))
    with alone(run):
        _make(ctx, "eval", lambda ctx: evaluate(ctx, parts, against))


def _require_free(run: RunDirectory, stage: str, overwrite: bool) -> None:
    if stage != "report" and not overwrite and run.status(stage) == "stale":
        files = list(run.manifest.files(stage))
        named = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
        why = "; ".join(run.changes(stage)[:4]) or "made from another config or from older results"
        remedy = "Give --overwrite to replace them, or --out another run directory."
        raise RunError(f"{run.path} holds {named} of stage {stage!r}: {why}. {_keep_training(run) or remedy}")


def _keep_training(run: RunDirectory) -> str:
    """What can be done about another config without losing an unfinished training; empty if there is none."""
    checkpoint = unfinished(run.path)
    if run.status("train") == "done" or checkpoint is None:
        return ""
    differing = "; ".join(filter(has_effect, differing_keys(RunDirectory.open(run.path).config, run.config)))
    return (
        f"An unfinished training ({checkpoint[0]:,} tokens) lies there as well, and --overwrite would discard it. "
        f"Continue it with its own settings by `groupsae run {run.path}`, or give this config another place with "
        "--out." + f" They differ in {differing}." * bool(differing)
    )


def _make(ctx: RunContext, stage: str, recipe: Recipe | None = None) -> None:
    """Do a stage under the run's config; a refusal leaves the config on disk as it was."""
    before = ctx.run.adopt()
    began = time.perf_counter()
    try:
        together = ctx.ranks.first or stage_named(stage).together
        files = (recipe or stage_named(stage).load())(ctx) if together else None
    except GroupsaeError:
        if before is not None:
            ctx.run.write_text("config.toml", before)
        raise
    if files is not None and ctx.ranks.first:
        inputs = stage_named(stage).input_files(ctx.run.config)
        ctx.run.finish(stage, time.perf_counter() - began, files, inputs)
        for folder in mark_stale_exports(ctx.run) if stage == "train" else ():
            say(f"train: {folder} was made of an earlier training; export again with --overwrite")
        if stage in ("train", "eval"):
            for line in alarms(RunRecords.read(ctx.run), ctx.run.config):
                say(f"ALARM: {line}")
    ctx.ranks.wait_for_first()
