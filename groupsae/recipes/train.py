"""The train stage: baseline and groups side by side, in one pass over the model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable

from groupsae.activations.scale import Scales, measure_scales
from groupsae.partition import Group, Partition, group_name
from groupsae.progress import bar, say
from groupsae.recipes.group import read_groups
from groupsae.recipes.warm_start import announce, warm_start_of
from groupsae.records import RunDirectory
from groupsae.saes.suite import save_sae, write_suite_index
from groupsae.training.checkpoint import Checkpoints, Progress
from groupsae.training.trainer import Trained, train_groups
from groupsae.training.warm_start import WarmStart
from groupsae.workbench import ROWS_FILE, Workbench

SCALES_IN_TRAINING = "checkpoint-scales.safetensors"


def train(bench: Workbench) -> list[str]:
    """An SAE per group of every suite of the run: `groups/`, `suite.json`, `train.json`, `metrics.jsonl`.

    A run with a warm start has one suite, `groups`, of one SAE per layer.
    """
    run, config = bench.run, bench.run.config
    start = warm_start_of(bench)
    if start:
        announce(start, bench)
    partitions = {"groups": Partition.singletons(bench.hookpoints)} if start else partitions_of(run)
    groups = distinct_groups(partitions)
    checkpoints = Checkpoints(run.path, _key(run, groups, start))
    if bench.overwrite and run.status("train") == "done":
        checkpoints.clear()
    if not checkpoints.exist:
        run.write_text("metrics.jsonl", "")
    began = time.perf_counter()
    scales = _scales(bench, checkpoints)
    measuring = time.perf_counter() - began
    with bar("train", config.train.num_tokens) as advance:
        trained = train_groups(
            bench.source,
            groups,
            scales,
            config.sae,
            config.train,
            seed=config.seed,
            buffer_tokens=config.activations.buffer_tokens,
            starts=start.starts(bench.hookpoints, scales) if start else None,
            checkpoints=checkpoints,
            progress=advance,
            log=lambda record: run.append_json("metrics.jsonl", record),
            resumed=lambda progress: _cut_metrics(run, progress),
        )
    for name, sae in trained.saes.items():
        save_sae(sae, run.file(f"groups/{name}"))
    run.write("scales.safetensors", scales.save)
    write_suite_index(run.path, partitions)
    _remove_other_groups(run, trained.saes)
    trained.seconds["language model"] += measuring
    _write_facts(bench, trained, groups)
    weights = [f"groups/{name}/{file}" for name in trained.saes for file in ("cfg.json", "sae.safetensors")]
    return ["train.json", "metrics.jsonl", "suite.json", "scales.safetensors", *weights]


def partitions_of(run: RunDirectory) -> dict[str, Partition]:
    """The suites that this run trains, by name: `groups`, and `baseline` unless it is turned off."""
    chosen = run.read_json("plan.json" if run.config.plan.chooses else "partition.json")["choice"]
    return with_baseline(run, read_groups(chosen["groups"]))


def with_baseline(run: RunDirectory, partition: Partition) -> dict[str, Partition]:
    """The partition under the name `groups`, and beside it one SAE per layer where the run wants it."""
    baseline = {"baseline": Partition.singletons(partition.hookpoints)} if run.config.train.baseline else {}
    return baseline | {"groups": partition}


def distinct_groups(partitions: dict[str, Partition]) -> tuple[Group, ...]:
    """The groups of all suites, each once: a group of one that both have is trained once."""
    return tuple(dict.fromkeys(group for partition in partitions.values() for group in partition.groups))


def _key(run: RunDirectory, groups: Iterable[Group], start: WarmStart | None) -> str:
    """What a checkpoint must agree in to be gone on from: config, text as it was read, groups, first weights."""
    text = run.manifest["stages"]["tokens"]["files"][ROWS_FILE]["sha256"]
    names = list(map(group_name, groups))
    first = [start.digest([group[0] for group in groups])[:16]] if start else []
    return " ".join([run.fingerprint("train"), text[:16], *first, *names])


def _scales(bench: Workbench, checkpoints: Checkpoints) -> Scales:
    """Each hookpoint's scale and centre: those of the checkpoint, or measured anew and kept beside it."""
    run, config = bench.run, bench.run.config.train
    if checkpoints.exist and run.file(SCALES_IN_TRAINING).exists():
        return Scales.load(run.file(SCALES_IN_TRAINING), bench.hookpoints).to(bench.source.device)
    passes = 2 if config.centre else 1
    with bar("scales", passes * min(config.scale_tokens, bench.rows.ids_RT.size)) as advance:
        scales = measure_scales(
            bench.source, config.scale_tokens, centre=config.centre, seed=bench.run.config.seed, progress=advance
        )
    run.write(SCALES_IN_TRAINING, scales.save)
    return scales


def _write_facts(bench: Workbench, trained: Trained, groups: Iterable[Group]) -> None:
    config = bench.run.config
    parts = ("language model", "SAE steps", "other")
    facts = {
        "num_tokens": config.train.num_tokens,
        "tokens_saved": sum(config.train.num_tokens - sae.lineage.tokens for sae in trained.saes.values()),
        "d_model": bench.source.d_model,
        "d_sae": config.sae.width(bench.source.d_model),
        "k": config.sae.k,
        "seconds": {part: trained.seconds[part] for part in parts},
        "groups": {
            name: {"seconds": trained.seconds[name], "hookpoints": group, **sae.lineage.to_json()}
            for (name, sae), group in zip(trained.saes.items(), groups, strict=True)
        },
        "scales": dict(zip(trained.scales.hookpoints, trained.scales.scale_L.tolist(), strict=True)),
    }
    bench.run.write_json("train.json", facts)


def _cut_metrics(run: RunDirectory, progress: Progress) -> None:
    """Keeps the lines of metrics.jsonl up to the checkpoint that training goes on from."""
    say(f"train: going on from step {progress.step} ({progress.position.tokens:,} tokens)")
    text = run.file("metrics.jsonl").read_text() if run.file("metrics.jsonl").exists() else ""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= progress.step]
    run.write_text("metrics.jsonl", "".join(kept))


def _remove_other_groups(run: RunDirectory, kept: Iterable[str]) -> None:
    for folder in run.file("groups").iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
