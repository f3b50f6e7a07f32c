"""The train stage: baseline and groups side by side, in one pass over the model."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from groupsae.activations.stats import ActivationStats, load_stats
from groupsae.config import flat
from groupsae.errors import Interrupted, RunError
from groupsae.interrupt import noted
from groupsae.partition import Group, Partition, group_name
from groupsae.progress import bar, say
from groupsae.recipes.context import ROWS_FILE, STATS_FILE, RunContext
from groupsae.recipes.warm_start import announce, warm_start_of
from groupsae.records import MAY_CHANGE, RunDirectory
from groupsae.records.types.partition import PartitionRecord
from groupsae.records.types.plan import PlanRecord
from groupsae.records.types.training import TrainRecord
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.scales import Scales
from groupsae.saes.suite import LAYER_MAPS_FILE, load_layer_maps, save_layer_maps, save_sae, write_suite_index
from groupsae.training.checkpoint import Checkpoints, Progress
from groupsae.training.fit import fit_layer_maps, measure_scales
from groupsae.training.hooks import Hooks
from groupsae.training.log import LogFile
from groupsae.training.loop import PARTS
from groupsae.training.precision import has_bf16
from groupsae.training.trainer import Trained, train_groups
from groupsae.training.warm_start import WarmStart

SCALES_IN_TRAINING = "checkpoint-scales.safetensors"
LAYER_MAPS_IN_TRAINING = "checkpoint-layer-maps"
LOGS = ("metrics.jsonl", "timing.jsonl")
"""What was measured, which is the same in every run of a config; and when and how, which is not."""


def train(ctx: RunContext) -> list[str]:
    """An SAE per group of every suite of the run: `groups/`, `suite.json`, `train.json`, `metrics.jsonl`.

    A run with a warm start has one suite, `groups`, of one SAE per layer.
    """
    run, config = ctx.run, ctx.run.config
    start = warm_start_of(ctx)
    if start:
        announce(start, ctx)
    partitions = {"groups": Partition.singletons(ctx.hookpoints)} if start else partitions_of(run)
    groups = distinct_groups(partitions)
    logs = {name: LogFile(run.file(name)) for name in LOGS}
    checkpoints = _checkpoints(run, groups, start, tuple(logs.values()))
    if ctx.overwrite and run.status("train") == "done":
        checkpoints.clear()
    if not checkpoints.exist:
        _require_no_other(ctx, checkpoints)
        for name in logs:
            run.write_text(name, "")
    if config.train.precision == "bf16" and not has_bf16(ctx.source.device):
        say(f"train: {ctx.source.device} has no bfloat16 in hardware; the encoder's product stays float32")
    began = time.perf_counter()
    scales = _scales(ctx, checkpoints)
    layer_maps = _layer_maps(ctx, checkpoints, groups, scales)
    measuring = time.perf_counter() - began
    with _resumable(run) as stop, bar("train", config.train.num_tokens) as advance:
        trained = train_groups(
            ctx.source,
            groups,
            scales,
            config.sae,
            config.train,
            seed=config.seed,
            buffer_tokens=config.activations.buffer_tokens,
            starts=start.starts(ctx.hookpoints, scales) if start else None,
            layer_maps=layer_maps,
            checkpoints=checkpoints,
            hooks=Hooks(
                progress=advance,
                log=lambda record: _log(logs, record),
                resumed=lambda progress: _tell(checkpoints, progress),
                chosen=lambda choice: say(f"train: kernel of the steps: {choice}"),
                stop=stop,
            ),
        )
    for name, sae in trained.saes.items():
        save_sae(sae, run.file(f"groups/{name}"), trained.layer_maps.get(name))
    run.write("scales.safetensors", scales.save)
    write_suite_index(run.path, partitions)
    _remove_other_groups(run, trained.saes)
    trained.seconds["language model"] += measuring
    _write_facts(ctx, trained, groups, checkpoints.snapshots())
    weights = [f"groups/{name}/{file}" for name in trained.saes for file in ("cfg.json", "sae.safetensors")]
    weights += [f"groups/{name}/{LAYER_MAPS_FILE}" for name in trained.layer_maps]
    return ["train.json", *LOGS, "suite.json", "scales.safetensors", *weights]


def partitions_of(run: RunDirectory) -> dict[str, Partition]:
    """The suites that this run trains, by name: `groups`, and `baseline` unless it is turned off."""
    record = (PlanRecord if run.config.plan.chooses else PartitionRecord).read(run)
    return with_baseline(run, record.choice.partition)


def with_baseline(run: RunDirectory, partition: Partition) -> dict[str, Partition]:
    """The partition under the name `groups`, and beside it one SAE per layer where the run wants it."""
    baseline = {"baseline": Partition.singletons(partition.hookpoints)} if run.config.train.baseline else {}
    return baseline | {"groups": partition}


def distinct_groups(partitions: dict[str, Partition]) -> tuple[Group, ...]:
    """The groups of all suites, each once: a group of one that both have is trained once."""
    return tuple(dict.fromkeys(group for partition in partitions.values() for group in partition.groups))


def _checkpoints(
    run: RunDirectory, groups: Sequence[Group], start: WarmStart | None, logs: Sequence[LogFile]
) -> Checkpoints:
    """The run's checkpoints. They must agree in config, the text as it was read, groups and first weights."""
    text = run.manifest.files("tokens")[ROWS_FILE].sha256
    names = " ".join(map(group_name, groups))
    first = start.digest([group[0] for group in groups])[:16] if start else "random"
    return Checkpoints(
        run.path,
        f"{run.fingerprint('train')} {text[:16]} {first} {names}",
        keep=run.config.train.keep_checkpoints,
        settings=flat(run.config) | {"text": text[:16], "groups": names, "first weights": first},
        logs=logs,
    )


def _require_no_other(ctx: RunContext, checkpoints: Checkpoints) -> None:
    """Raises RunError, naming what differs, if an unfinished training of other settings would be lost."""
    other = checkpoints.others()
    if other is None or ctx.overwrite or ctx.run.status("train") != "missing":
        return
    tokens, settings = other
    counts = (key for key in checkpoints.settings if key not in ("name", *MAY_CHANGE) and not key.startswith("eval."))
    now = {key: checkpoints.settings[key] for key in counts}
    differing = [f"{key}: {settings.get(key)!r} -> {now[key]!r}" for key in now if settings.get(key) != now[key]]
    raise RunError(
        f"{ctx.run.path} holds an unfinished training ({tokens:,} tokens) of other settings "
        f"({'; '.join(differing)}). Only {', '.join(MAY_CHANGE)} may change. Continue it with its own settings by "
        f"`groupsae run {ctx.run.path}`, give this config another place with --out, or discard the unfinished training "
        "with --overwrite."
    )


@contextlib.contextmanager
def _resumable(run: RunDirectory) -> Iterator[Callable[[], int]]:
    """Yields what tells of a signal; an interruption gets a message that says how to go on."""
    try:
        with noted("finishing this step and saving.") as stop:
            yield stop
    except Interrupted as stopped:
        message = f"{stopped} Saved. The same command goes on from there, or `groupsae run {run.path}`."
        raise Interrupted(stopped.signal, message.strip()) from None


def _scales(ctx: RunContext, checkpoints: Checkpoints) -> Scales:
    """Each hookpoint's scale and center: those of the checkpoint, or measured anew and kept beside it."""
    run, config = ctx.run, ctx.run.config.train
    if checkpoints.exist and run.file(SCALES_IN_TRAINING).exists():
        return Scales.load(run.file(SCALES_IN_TRAINING), ctx.hookpoints).to(ctx.source.device)
    stats = _measured_stats(run, ctx.hookpoints).get(config.scale_tokens)
    passes = 0 if stats else 1 + config.center
    with bar("scales", passes * min(config.scale_tokens, ctx.rows.ids_RT.size)) as advance:
        scales = measure_scales(
            ctx.source,
            config.scale_tokens,
            center=config.center,
            seed=ctx.run.config.seed,
            stats=stats,
            progress=advance,
        )
    run.write(SCALES_IN_TRAINING, scales.save)
    return scales


def _measured_stats(run: RunDirectory, hookpoints: tuple[str, ...]) -> dict[int, ActivationStats]:
    """The statistics that the distances stage measured, by number of tokens; none where it did not run."""
    if "distances" not in run.own_stages or run.status("distances") != "done":
        return {}
    return load_stats(run.file(STATS_FILE), hookpoints)


def _layer_maps(
    ctx: RunContext, checkpoints: Checkpoints, groups: Sequence[Group], scales: Scales
) -> dict[Group, LayerMaps]:
    """What layers have of their own: as the checkpoint's training had it, or fitted anew and written down."""
    run, per_layer = ctx.run, ctx.run.config.group.layer_maps
    d_sae = ctx.run.config.sae.width(ctx.source.d_model)
    if not per_layer.any:
        return {}
    folders = {group: run.file(f"{LAYER_MAPS_IN_TRAINING}/{group_name(group)}") for group in groups}
    if checkpoints.exist and all((folder / LAYER_MAPS_FILE).exists() for folder in folders.values()):
        found = {
            group: load_layer_maps(folder, per_layer, ctx.source.d_model, d_sae, len(group))
            for group, folder in folders.items()
        }
        return {group: maps.to(ctx.source.device) for group, maps in found.items()}
    num_tokens = ctx.run.config.train.scale_tokens
    with bar("layer maps", min(num_tokens, ctx.rows.ids_RT.size)) as advance:
        layer_maps = fit_layer_maps(
            ctx.source,
            groups,
            scales,
            per_layer,
            num_tokens,
            d_sae=d_sae,
            seed=ctx.run.config.seed,
            progress=advance,
        )
    for group, maps in layer_maps.items():
        save_layer_maps(maps, folders[group])
    return layer_maps


def _write_facts(ctx: RunContext, trained: Trained, groups: Iterable[Group], snapshots: dict[int, list[str]]) -> None:
    config = ctx.run.config
    record = TrainRecord(
        num_tokens=config.train.num_tokens,
        tokens_saved=sum(config.train.num_tokens - sae.lineage.tokens for sae in trained.saes.values()),
        d_model=ctx.source.d_model,
        d_sae=config.sae.width(ctx.source.d_model),
        k=config.sae.k,
        seconds={part: trained.seconds[part] for part in PARTS},
        saes={
            name: {"seconds": trained.seconds[name], "hookpoints": group, **sae.lineage.to_json()}
            for (name, sae), group in zip(trained.saes.items(), groups, strict=True)
        },
        scales=dict(zip(trained.scales.hookpoints, trained.scales.scale_L.tolist(), strict=True)),
        snapshots=snapshots,
        masked_positions=trained.masked,
        kernel=asdict(trained.kernel),
    )
    record.write(ctx.run)


def _log(logs: dict[str, LogFile], record: dict[str, Any]) -> None:
    how = ("seconds", "micro_batches", "kernel")
    logs["metrics.jsonl"].append({key: value for key, value in record.items() if key not in how})
    logs["timing.jsonl"].append({key: value for key, value in record.items() if key != "groups"})
    for name, facts in record["groups"].items():
        if facts["skipped"]:
            say(f"train: {facts['skipped']} steps of {name} skipped before step {record['step']} (NaN or infinity)")


def _tell(checkpoints: Checkpoints, progress: Progress) -> None:
    for fault in checkpoints.damaged:
        say(f"train: passed over: {fault}")
    say(f"train: going on from step {progress.step} ({progress.position.tokens:,} tokens)")


def _remove_other_groups(run: RunDirectory, kept: Iterable[str]) -> None:
    """Removes the folders of groups of before; a link that leads elsewhere is only unlinked."""
    if run.file("groups").is_symlink():
        return
    for folder in run.file("groups").iterdir():
        if folder.is_symlink():
            folder.unlink()
        elif folder.name not in kept:
            shutil.rmtree(folder)
