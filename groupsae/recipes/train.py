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
from groupsae.records import RunDirectory
from groupsae.saes.suite import save_sae, write_suite_index
from groupsae.training.checkpoint import Checkpoints, Progress
from groupsae.training.precision import has_bf16
from groupsae.training.trainer import PARTS, Trained, train_groups
from groupsae.workbench import ROWS_FILE, Workbench

SCALES_IN_TRAINING = "checkpoint-scales.safetensors"


def train(bench: Workbench) -> list[str]:
    """An SAE per group of every suite of the run: `groups/`, `suite.json`, `train.json`, `metrics.jsonl`."""
    run, config = bench.run, bench.run.config
    partitions = partitions_of(run)
    groups = distinct_groups(partitions)
    checkpoints = Checkpoints(run.path, _key(run, groups))
    if bench.overwrite and run.status("train") == "done":
        checkpoints.clear()
    if not checkpoints.exist:
        run.write_text("metrics.jsonl", "")
    if config.train.precision == "bf16" and not has_bf16(bench.source.device):
        say(f"train: {bench.source.device} has no bfloat16 in hardware; the encoder's product stays float32")
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


def _key(run: RunDirectory, groups: Iterable[Group]) -> str:
    """What a checkpoint must agree in to be gone on from: the config, the text as it was read, the groups."""
    text = run.manifest["stages"]["tokens"]["files"][ROWS_FILE]["sha256"]
    return f"{run.fingerprint('train')} {text[:16]} {' '.join(map(group_name, groups))}"


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
    facts = {
        "num_tokens": config.train.num_tokens,
        "d_model": bench.source.d_model,
        "d_sae": config.sae.width(bench.source.d_model),
        "k": config.sae.k,
        "seconds": {part: trained.seconds[part] for part in PARTS},
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
    text = run.file("metrics.jsonl").read_text() if run.file("metrics.jsonl").exists() else ""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= progress.step]
    run.write_text("metrics.jsonl", "".join(kept))


def _remove_other_groups(run: RunDirectory, kept: Iterable[str]) -> None:
    for folder in run.file("groups").iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
