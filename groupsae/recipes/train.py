"""The train stage: baseline and groups side by side, in one pass over the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable

from groupsae.partition import Group, Partition
from groupsae.progress import bar, say
from groupsae.recipes.group import read_groups
from groupsae.records import RunDirectory
from groupsae.saes.suite import save_sae, write_suite_index
from groupsae.training.checkpoint import MARKER, Progress
from groupsae.training.trainer import Trained, train_groups
from groupsae.workbench import Workbench


def train(bench: Workbench) -> list[str]:
    """An SAE per group of every suite of the run: `groups/`, `suite.json`, `train.json`, `metrics.jsonl`."""
    run, config = bench.run, bench.run.config
    partitions = partitions_of(run)
    groups = distinct_groups(partitions)
    if bench.overwrite:
        run.file(MARKER).unlink(missing_ok=True)
    if not run.file(MARKER).exists():
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
            key=f"{run.fingerprint('train')} {' '.join(map(str, partitions.values()))}",
            progress=advance,
            log=lambda record: run.append_json("metrics.jsonl", record),
            resumed=lambda progress: _cut_metrics(run, progress),
        )
    for name, sae in trained.saes.items():
        save_sae(sae, run.file(f"groups/{name}"))
    run.write("scales.safetensors", trained.scales.save)
    write_suite_index(run.path, partitions)
    _remove_other_groups(run, trained.saes)
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


def _write_facts(bench: Workbench, trained: Trained, groups: Iterable[Group]) -> None:
    config = bench.run.config
    parts = ("language model", "SAE steps", "other")
    facts = {
        "num_tokens": config.train.num_tokens,
        "d_model": bench.d_model,
        "d_sae": config.sae.width(bench.d_model),
        "k": config.sae.k,
        "seconds": {part: trained.seconds[part] for part in parts},
        "groups": {
            name: {"seconds": trained.seconds[name], "hookpoints": group}
            for name, group in zip(trained.saes, groups, strict=True)
        },
        "scales": dict(zip(trained.scales.hookpoints, trained.scales.scale_L.tolist(), strict=True)),
    }
    bench.run.write_json("train.json", facts)


def _cut_metrics(run: RunDirectory, progress: Progress) -> None:
    """Keeps the lines of metrics.jsonl up to the checkpoint that training goes on from."""
    say(f"train: going on from step {progress.step} ({progress.position.tokens:,} tokens)")
    lines = run.file("metrics.jsonl").read_text().splitlines() if run.file("metrics.jsonl").exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= progress.step]
    run.write_text("metrics.jsonl", "".join(f"{line}\n" for line in kept))


def _remove_other_groups(run: RunDirectory, kept: Iterable[str]) -> None:
    for folder in run.file("groups").iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
