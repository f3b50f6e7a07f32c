"""One function per verb: the only code that knows the order of the stages."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from groupsae.errors import RunError
from groupsae.evaluation import losses as losses_module
from groupsae.evaluation import reconstruction as reconstruction_module
from groupsae.grouping.choice import METHODS, candidates, choose, read_partition
from groupsae.grouping.matrix import Distances
from groupsae.grouping.metrics import measure_distances
from groupsae.grouping.quality import amad, largest_diameter, size_weighted_amad
from groupsae.partition import Partition
from groupsae.planning.cost import paper_cost
from groupsae.progress import bar, say
from groupsae.records import STAGES, RunDirectory
from groupsae.saes.suite import Suite, read_suite_index, save_sae, write_suite_index
from groupsae.tokens import read_rows
from groupsae.training.checkpoint import Progress
from groupsae.training.trainer import train_groups
from groupsae.workbench import ROWS_FILE, Workbench


def run_all(run: RunDirectory, *, overwrite: bool = False) -> None:
    """Every stage that is not done yet, in order; with `overwrite`, those made from another config again."""
    unfinished = [stage for stage in STAGES if run.status(stage) != "done"]
    bench = Workbench(run, overwrite)
    for stage in unfinished:
        _require_free(run, stage, overwrite)
    if not unfinished:
        say(f"{run.path} is complete.")
        return
    bench.require_possible()
    for stage in unfinished:
        _make(bench, stage)


def run_stage(run: RunDirectory, stage: str, *, overwrite: bool = False) -> None:
    """One stage. If it is done already, it is left as it is, or with `overwrite` made again.

    Raises RunError, before anything is computed, if an earlier stage is missing, or if results
    made from another config would be replaced without `overwrite`.
    """
    if run.status(stage) == "done" and not overwrite:
        say(f"{stage}: done already (--overwrite makes it again)")
        return
    _require_free(run, stage, overwrite)
    if stage != "report":
        run.require(*STAGES[: STAGES.index(stage)])
    _make(Workbench(run, overwrite), stage)


def _require_free(run: RunDirectory, stage: str, overwrite: bool) -> None:
    if stage != "report" and not overwrite and run.status(stage) == "stale":
        files = ", ".join(run.manifest["stages"][stage]["files"])
        raise RunError(
            f"{run.path} holds {files} of stage {stage!r}, made from another config or from older results. "
            "Give --overwrite to replace them, or --out another run directory."
        )


def _make(bench: Workbench, stage: str) -> None:
    bench.run.adopt()
    began = time.perf_counter()
    files = _STAGES[stage](bench)
    bench.run.finish(stage, time.perf_counter() - began, files)


def _tokens(bench: Workbench) -> list[str]:
    config = bench.run.config.text
    bench.describe()
    with bar("tokens", None) as advance:
        rows = read_rows(
            config.source,
            bench.tokenizer,
            context_length=config.context_length,
            held_out_share=config.held_out_share,
            field=config.field,
            split=config.split,
            max_tokens=config.max_tokens,
            max_held_out_tokens=config.max_held_out_tokens,
            progress=advance,
        )
    bench.run.write(ROWS_FILE, rows.save)
    index = {
        "rows": len(rows),
        "context_length": rows.context_length,
        "training_tokens": rows.ids_RT.size,
        "training_documents": rows.num_documents,
        "held_out_tokens": rows.held_out.ids_RT.size,
        "held_out_documents": rows.held_out.num_documents,
    }
    bench.run.write_json("tokens/index.json", index)
    return ["tokens/index.json", ROWS_FILE]


def _distances(bench: Workbench) -> list[str]:
    config = bench.run.config.distances
    total = min(config.num_tokens, bench.rows.ids_RT.size)
    with bar("distances", 2 * total) as advance:
        distances = measure_distances(
            config.metric,
            bench.source,
            config.num_tokens,
            seed=bench.run.config.seed,
            until_stderr=config.until_stderr,
            progress=advance,
        )
    bench.run.write_json("distances.json", distances.to_json())
    return ["distances.json"]


def _group(bench: Workbench) -> list[str]:
    run, config = bench.run, bench.run.config.group
    distances = Distances.from_json(run.read_json("distances.json"))
    if config.method in METHODS:
        found = candidates(distances, config.method, config.objective)
        chosen = choose(distances, found, config.groups, config.max_amad)
        why = (
            f"asked for {config.groups} groups"
            if config.groups
            else f"the smallest number of groups with AMAD below {config.max_amad:g}"
        )
    else:
        chosen = read_partition(Path(config.method), distances.hookpoints)
        found, why = [chosen], f"read from {config.method}"
    plan = {
        "method": config.method,
        "choice": {"num_groups": len(chosen), "why": why},
        "candidates": [_candidate(bench, distances, partition) for partition in found],
        "partitions": {"baseline": Partition.singletons(distances.hookpoints).groups, "groups": chosen.groups},
    }
    run.write_json("plan.json", plan)
    say(f"group: {chosen} ({why}; AMAD {amad(distances, chosen):.3f})")
    return ["plan.json"]


def _candidate(bench: Workbench, distances: Distances, partition: Partition) -> dict[str, Any]:
    config = bench.run.config
    cost = paper_cost(bench.architecture, len(partition), config.sae.width(bench.d_model), config.text.context_length)
    return {
        "num_groups": len(partition),
        "groups": partition.groups,
        "amad": amad(distances, partition),
        "size_weighted_amad": size_weighted_amad(distances, partition),
        "largest_diameter": largest_diameter(distances, partition),
        "mflop_per_token": {
            "language_model": cost.harvest / 1e6,
            "saes": cost.training / 1e6,
            "total": cost.total / 1e6,
        },
    }


def _train(bench: Workbench) -> list[str]:
    run, config = bench.run, bench.run.config
    partitions = {name: Partition(tuple(map(tuple, groups))) for name, groups in _partitions(run).items()}
    if not config.train.baseline:
        del partitions["baseline"]
    groups = dict.fromkeys(group for partition in partitions.values() for group in partition.groups)
    key = f"{run.fingerprint('train')} {' '.join(name for p in partitions.values() for name in p.names)}"
    if bench.overwrite:
        run.file("checkpoint.json").unlink(missing_ok=True)
    if not run.file("checkpoint.json").exists():
        run.write_text("metrics.jsonl", "")
    with bar("train", config.train.num_tokens) as advance:
        trained = train_groups(
            bench.source,
            groups,
            config.sae,
            config.train,
            seed=config.seed,
            buffer_tokens=config.activations.buffer_tokens,
            folder=run.path,
            key=key,
            progress=advance,
            log=lambda record: run.append_json("metrics.jsonl", record),
            resumed=lambda progress: _cut_metrics(run, progress),
        )
    for name, sae in trained.saes.items():
        save_sae(sae, run.file(f"groups/{name}"))
    run.write("scales.safetensors", trained.scales.save)
    write_suite_index(run.path, partitions)
    _remove_other_groups(run, set(trained.saes))
    parts = ("language model", "SAE steps", "other")
    facts = {
        "num_tokens": config.train.num_tokens,
        "d_model": bench.d_model,
        "d_sae": config.sae.width(bench.d_model),
        "k": config.sae.k,
        "seconds": {part: trained.seconds[part] for part in parts},
        "groups": {
            name: {"seconds": trained.seconds[name], "hookpoints": list(group)}
            for name, group in zip(trained.saes, groups, strict=True)
        },
        "scales": dict(zip(trained.scales.hookpoints, trained.scales.scale_L.tolist(), strict=True)),
    }
    run.write_json("train.json", facts)
    weights = [f"groups/{name}/{file}" for name in trained.saes for file in ("cfg.json", "sae.safetensors")]
    return ["train.json", "metrics.jsonl", "suite.json", "scales.safetensors", *weights]


def _partitions(run: RunDirectory) -> dict[str, list[list[str]]]:
    return run.read_json("plan.json")["partitions"]


def _cut_metrics(run: RunDirectory, progress: Progress) -> None:
    """Keeps the lines of metrics.jsonl up to the checkpoint that training goes on from."""
    say(f"train: going on from step {progress.step} ({progress.position.tokens:,} tokens)")
    lines = run.file("metrics.jsonl").read_text().splitlines() if run.file("metrics.jsonl").exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= progress.step]
    run.write_text("metrics.jsonl", "".join(f"{line}\n" for line in kept))


def _remove_other_groups(run: RunDirectory, kept: set[str]) -> None:
    for folder in run.file("groups").iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)


def _eval(bench: Workbench) -> list[str]:
    run, config = bench.run, bench.run.config.eval
    device = str(bench.source.device)
    suites = {name: Suite.load(run.path, name, device=device) for name in read_suite_index(run.path)}
    held_out = bench.source.held_out()
    total = min(config.num_tokens, held_out.rows.ids_RT.size)
    with bar("eval reconstruction", total) as advance:
        found = reconstruction_module.evaluate_reconstructions(
            suites, held_out, config.num_tokens, seed=run.config.seed, progress=advance
        )
    reconstruction = {
        "num_tokens": total,
        "units": reconstruction_module.UNITS,
        "suites": {name: {hookpoint: asdict(r) for hookpoint, r in suite.items()} for name, suite in found.items()},
    }
    run.write_json("eval/reconstruction.json", reconstruction)
    with bar("eval losses", total) as advance:
        spliced = losses_module.evaluate_losses(
            suites, held_out, config.num_tokens, seed=run.config.seed, progress=advance
        )
    run.write_json("eval/losses.json", {"units": losses_module.UNITS, **asdict(spliced)})
    return ["eval/reconstruction.json", "eval/losses.json"]


def _report(bench: Workbench) -> list[str]:
    from groupsae.report.page import write_report

    write_report(bench.run)
    return ["report/index.html"]


_STAGES: dict[str, Callable[[Workbench], list[str]]] = {
    "tokens": _tokens,
    "distances": _distances,
    "group": _group,
    "train": _train,
    "eval": _eval,
    "report": _report,
}
