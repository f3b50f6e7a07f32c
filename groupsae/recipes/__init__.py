"""One function per verb: the only code that knows the order of the stages.

`run_all` does what is missing, `run_stage` one stage. A stage reads what those before it wrote,
writes its own files, and is then recorded in the manifest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from groupsae.errors import GroupsaeError, RunError
from groupsae.progress import say
from groupsae.recipes.evaluate import evaluate, require_parts, wanted_parts
from groupsae.recipes.group import group
from groupsae.recipes.measure import measure_layers, tokenize
from groupsae.recipes.plan import plan
from groupsae.recipes.train import train
from groupsae.records import STAGES, RunDirectory
from groupsae.report.page import write_report
from groupsae.workbench import Workbench

Recipe = Callable[[Workbench], list[str] | None]
"""Does a stage, returns the names of the files it wrote; None if a part of the stage is still missing."""


def report(bench: Workbench) -> list[str]:
    """The report of whatever has been done."""
    write_report(bench.run)
    return ["report/index.html"]


RECIPES: dict[str, Recipe] = {
    "tokens": tokenize,
    "distances": measure_layers,
    "group": group,
    "plan": plan,
    "train": train,
    "eval": evaluate,
    "report": report,
}
NEEDS_NOTHING = ("plan", "report")
"""Stages that make do with what there is: a plan can be made before a model is loaded, a report at any time."""


def run_all(run: RunDirectory, *, overwrite: bool = False) -> None:
    """Every stage that is not done yet, in order; with `overwrite`, those made from another config again."""
    unfinished = [stage for stage in STAGES if run.status(stage) != "done"]
    for stage in unfinished:
        _require_free(run, stage, overwrite)
    if not unfinished:
        say(f"{run.path} is complete.")
        return
    bench = Workbench(run, overwrite)
    bench.require_possible()
    for stage in dict.fromkeys((*unfinished, "report")):
        _make(bench, stage)


def run_stage(run: RunDirectory, stage: str, *, overwrite: bool = False) -> None:
    """One stage. If it is done already, it is left as it is, or with `overwrite` made again.

    Raises RunError, before anything is computed, if an earlier stage is missing, or if results
    made from another config would be replaced without `overwrite`.
    """
    if run.status(stage) == "done" and not overwrite and stage != "report":
        say(f"{stage}: done already (--overwrite makes it again)")
        return
    _require_free(run, stage, overwrite)
    if stage not in NEEDS_NOTHING:
        run.require(*run.before(stage))
    _make(Workbench(run, overwrite), stage)


def run_parts(run: RunDirectory, parts: Sequence[str], against: Path | None, *, overwrite: bool = False) -> None:
    """Some parts of the eval stage, or all if none is named; with `against`, side by side with another run's suites.

    Parts that are done are left as they are, or with `overwrite` made again. Raises as `run_stage`
    does; RunError for a run that cannot be compared with, ConfigError for an unknown part.
    """
    require_parts(parts)
    bench = Workbench(run, overwrite)
    wanted_parts(bench, parts, against)
    run.require(*run.before("eval"))
    _make(bench, "eval", lambda bench: evaluate(bench, parts, against))


def _require_free(run: RunDirectory, stage: str, overwrite: bool) -> None:
    if stage != "report" and not overwrite and run.status(stage) == "stale":
        files = list(run.manifest["stages"][stage]["files"])
        named = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
        raise RunError(
            f"{run.path} holds {named} of stage {stage!r}, made from another config or from older results. "
            "Give --overwrite to replace them, or --out another run directory."
        )


def _make(bench: Workbench, stage: str, recipe: Recipe | None = None) -> None:
    """Do a stage under the run's config; a refusal leaves the config on disk as it was."""
    before = bench.run.adopt()
    began = time.perf_counter()
    try:
        files = (recipe or RECIPES[stage])(bench)
    except GroupsaeError:
        if before is not None:
            bench.run.write_text("config.toml", before)
        raise
    if files is not None:
        bench.run.finish(stage, time.perf_counter() - began, files)
