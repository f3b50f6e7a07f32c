"""The eval stage: every suite of a run on the same held-out tokens, in parts that can be had one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from groupsae import metrics
from groupsae.analysis.run_records import BASELINE
from groupsae.analysis.summary import write_summary
from groupsae.config import RunConfig
from groupsae.errors import ConfigError, RunError, unknown
from groupsae.evaluation.aggregate import differences, references_of, summary
from groupsae.evaluation.circuits import evaluate_circuits
from groupsae.evaluation.density import DENSITY_EDGES
from groupsae.evaluation.losses import SplicedLosses, evaluate_losses
from groupsae.evaluation.measures import Measured
from groupsae.evaluation.reconstruction import Reconstructions, evaluate_reconstructions
from groupsae.evaluation.similarity import evaluate_similarity
from groupsae.interpretability.agreement import agreement
from groupsae.interpretability.explanations import read_explanations
from groupsae.interpretability.store import ContextStore
from groupsae.interpretability.summary import read_scores, summarize_scores
from groupsae.interpretability.surface import MIN_FIRINGS
from groupsae.metrics import units
from groupsae.progress import bar, say
from groupsae.recipes.context import RunContext
from groupsae.recipes.eval_inputs import EvalInputs, eval_inputs
from groupsae.records.types.circuits import CircuitsRecord
from groupsae.records.types.interpretability import InterpretabilityRecord
from groupsae.records.types.losses import LossesRecord
from groupsae.records.types.reconstruction import ReconstructionRecord
from groupsae.records.types.record import Record
from groupsae.records.types.similarity import SimilarityRecord

Part = Callable[[EvalInputs], Record]
"""Measures one thing of all suites; what it returns becomes `eval/<part>.json`."""


def reconstruction(inputs: EvalInputs) -> ReconstructionRecord:
    """How well SAEs reconstruct activations."""
    found = inputs.evaluated("reconstruction", evaluate_reconstructions, inputs.held_out, means=True)
    return ReconstructionRecord(
        units=units(metrics.RECONSTRUCTION),
        density_edges=DENSITY_EDGES,
        **_reconstruction_scope(inputs, found),
        other_scope=found.other_scope and _reconstruction_scope(inputs, found.other_scope),
    )


def _reconstruction_scope(inputs: EvalInputs, found: Reconstructions) -> dict[str, Any]:
    return {
        "scope": found.scope,
        "num_tokens": found.num_tokens,
        "num_rows": found.num_rows,
        "suites": _by_layer(found.suites),
        **summary(inputs.suites, found.suites, metrics.RECONSTRUCTION, inputs.references),
    }


def losses(inputs: EvalInputs) -> LossesRecord:
    """What splicing SAEs in costs the model."""
    found = inputs.evaluated("losses", evaluate_losses, inputs.source, means=True)
    return LossesRecord(
        units=units(metrics.LOSSES),
        **_losses_scope(inputs, found),
        other_scope=found.other_scope and _losses_scope(inputs, found.other_scope),
    )


def _losses_scope(inputs: EvalInputs, found: SplicedLosses) -> dict[str, Any]:
    together = {name: {"all layers": one} for name, one in found.all_layers.items()}
    references = references_of(together, inputs.references)
    return {
        "scope": found.scope,
        "num_tokens": found.num_tokens,
        "num_rows": found.num_rows,
        "ce_clean": found.ce_clean,
        "ablated": {hookpoint: vars(one) for hookpoint, one in found.ablated.items()},
        "suites": _by_layer(found.suites),
        **summary(inputs.suites, found.suites, metrics.LOSSES, inputs.references),
        "all_layers": {name: one.as_record() for name, one in found.all_layers.items()},
        "all_layers_ablated": {name: vars(one) for name, one in found.all_layers_ablated.items()},
        "all_layers_differences": {
            name: differences(together[name], together[other], metrics.LOSSES) for name, other in references.items()
        },
    }


def circuits(inputs: EvalInputs) -> CircuitsRecord:
    """What a few latents carry of a task."""
    ctx = inputs.ctx
    config = ctx.run.config.circuits
    with bar("eval circuits", len(config.tasks), "tasks") as advance:
        found = evaluate_circuits(
            inputs.suites, inputs.source, ctx.tokenizer, config, seed=inputs.seed, progress=advance
        )
    return CircuitsRecord(units=units(metrics.CIRCUITS), **asdict(found))


def similarity(inputs: EvalInputs) -> SimilarityRecord:
    """What dictionaries share."""
    comparing = {"compared": inputs.are_compared, "repeated": inputs.are_repeated}
    found = inputs.evaluated("similarity", evaluate_similarity, inputs.held_out, **comparing)
    return SimilarityRecord(units=units(metrics.SIMILARITY), **asdict(found))


def interpretability(inputs: EvalInputs) -> InterpretabilityRecord:
    """What latents mean, by scores that need no judge; from the contexts."""
    store = ContextStore(inputs.ctx.run)
    scores = read_scores(store)
    first = BASELINE if BASELINE in scores else next(iter(scores))
    return InterpretabilityRecord(
        units=units(metrics.INTERPRETABILITY),
        text=store.record.text,
        num_tokens=store.record.num_tokens,
        min_firings=MIN_FIRINGS,
        **asdict(summarize_scores(scores, first)),
        agreement=agreement(scores, read_explanations(inputs.ctx.run)),
    )


TOGETHER = ("reconstruction", "losses")
"""The parts whose rows several ranks share; the others are rank 0's alone."""
FROM_CONTEXTS = "interpretability"
"""The part that is made from the contexts of a run, and not from activations."""
PARTS: dict[str, Part] = {
    "reconstruction": reconstruction,
    "losses": losses,
    "circuits": circuits,
    "similarity": similarity,
    FROM_CONTEXTS: interpretability,
}


def require_parts(names: Sequence[str]) -> None:
    """Raises ConfigError for a part that there is not, naming the nearest."""
    for name in names:
        if name not in PARTS:
            raise ConfigError(unknown("part of an evaluation", name, PARTS))


def evaluate(ctx: RunContext, parts: Sequence[str] = (), against: Path | None = None) -> list[str] | None:
    """Some parts of the evaluation, or all if none is named: `eval/<part>.json`, and `eval/summary.json`.

    With `against`, another run's suites beside this one's: `eval/against/<run>/`. A part that is done
    is left as it is, unless all is to be made again. Returns the run's files once all parts are done.
    Raises RunError for a part made from another config or older results, unless it is to be made again.
    """
    ctx = ctx.for_evaluation()
    inputs = eval_inputs(ctx, against)
    run, files, beside = ctx.run, _files(inputs), _beside(inputs)
    wanted = wanted_parts(ctx, parts, against)
    for part in ctx.ranks.from_first(wanted):
        began = time.perf_counter()
        if ctx.ranks.first or part in TOGETHER:
            PARTS[part](inputs).write(run, files[part])
        if not ctx.ranks.first:
            continue
        read = run.config.circuits.files if part == "circuits" else []
        run.finish("eval", time.perf_counter() - began, [files[part]], read, part=files[part], beside=beside[part])
    if not wanted:
        say(f"eval {' '.join(parts or PARTS)}: done already (--overwrite makes it again)")
    ctx.ranks.wait_for_first()
    if not ctx.ranks.first:
        return None
    written = write_summary(run, inputs.other)
    done = all(run.status("eval", file, beside=beside[part]) == "done" for part, file in files.items())
    return [*files.values(), written] if done and against is None else None


def wanted_parts(ctx: RunContext, parts: Sequence[str], against: Path | None) -> list[str]:
    """The parts that `evaluate` will measure; raises what it raises before anything is loaded."""
    ctx.require_tasks()
    inputs = eval_inputs(ctx, against)
    files, beside = _files(inputs), _beside(inputs)
    if FROM_CONTEXTS in parts and FROM_CONTEXTS not in files:
        _require_contexts(ctx, against)
    status = {part: ctx.run.status("eval", file, beside=beside[part]) for part, file in files.items()}
    wanted = [part for part in parts or files if ctx.overwrite or status[part] != "done"]
    stale = [files[part] for part in wanted if status[part] == "stale"]
    if stale and not ctx.overwrite:
        raise RunError(
            f"{ctx.run.path} holds {', '.join(stale)}, made from another config or from older results. "
            "Give --overwrite to replace them, or --out another run directory."
        )
    return wanted


def _files(inputs: EvalInputs) -> dict[str, str]:
    """The files of the parts that can be had: one needs contexts, which another run's suites do not have here."""
    has_contexts = inputs.other is None and inputs.ctx.run.status("contexts") == "done"
    return {part: f"{inputs.folder}/{part}.json" for part in PARTS if part != FROM_CONTEXTS or has_contexts}


def _beside(inputs: EvalInputs) -> dict[str, str]:
    """What each part is made from besides the stages before `eval`, as a hash."""
    recorded = inputs.ctx.run.manifest.stages
    found = dict.fromkeys(PARTS, inputs.beside)
    return found | {FROM_CONTEXTS: recorded["contexts"].files_digest if "contexts" in recorded else ""}


def _require_contexts(ctx: RunContext, against: Path | None) -> None:
    if against is not None:
        raise ConfigError(
            f"{FROM_CONTEXTS} compares the suites of one run only: leave --against out, or train them in one run."
        )
    ctx.run.require("contexts")


def _by_layer(suites: Mapping[str, Mapping[str, Measured]]) -> dict[str, dict[str, Any]]:
    return {name: {hookpoint: one.as_record() for hookpoint, one in layers.items()} for name, layers in suites.items()}


def task_files(config: RunConfig) -> list[Path]:
    """The files of prompt pairs that circuits are evaluated on."""
    return config.circuits.files
