"""The train stage: baseline and groups side by side, in one pass over the model."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from groupsae.config import Variant, flat
from groupsae.distributed.launch import current_ranks
from groupsae.errors import Interrupted, RunError
from groupsae.interrupt import noted
from groupsae.partition import Group, Partition, group_name, sae_name
from groupsae.planning.cluster import ClusterPlan
from groupsae.progress import bar, say
from groupsae.recipes.context import ROWS_FILE, RunContext
from groupsae.recipes.normalization import layer_maps_of, scales_of
from groupsae.recipes.passes import Pass, checkpoint_folders, done_before, merged, passes_of, unfinished
from groupsae.recipes.suites import distinct_groups, kinds_of, suites_of
from groupsae.recipes.warm_start import announce, warm_start_of
from groupsae.records import MAY_CHANGE, RunDirectory
from groupsae.records.types.training import PassRecord, RankShare, TrainedVariant, TrainRecord
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.scales import Scales
from groupsae.saes.suite import LAYER_MAPS_FILE, save_sae, write_suite_index
from groupsae.training.checkpoint import Checkpoints, Progress
from groupsae.training.hooks import Hooks
from groupsae.training.log import LogFile
from groupsae.training.loop import PARTS
from groupsae.training.precision import has_bf16
from groupsae.training.trackers import TrackedRun, Trackers
from groupsae.training.trainer import Trained, TrainJob, train_together
from groupsae.training.warm_start import WarmStart

TRACKERS_FOLDER = "trackers"
REPEATS = 10.0
"""Seconds for which several SIGTERM are one: under torchrun a scheduler signals both it and its processes."""
LOGS = ("metrics.jsonl", "timing.jsonl")
"""What was measured, which is the same in every run of a config; and when and how, which is not."""


def train(ctx: RunContext) -> list[str] | None:
    """An SAE per group of every suite of the run: `groups/`, `suite.json`, `train.json`, `metrics.jsonl`.

    A run with a warm start has one suite, `groups`, of one SAE per layer. A sweep has the suites of every variant, all
    trained in one pass over the model, or in as few as memory allows. Of several ranks each trains its share of the
    SAEs, and rank 0 writes what is not an SAE's own.
    """
    run, config, ranks = ctx.run, ctx.run.config, ctx.ranks
    if config.train.imported is not None:
        raise RunError(
            f"{run.path} trains nothing: its SAEs were imported ({config.train.imported}). Import them again."
        )
    start = warm_start_of(ctx)
    if start:
        announce(start, ctx)
    kinds = {"groups": Partition.singletons(ctx.hookpoints)} if start else kinds_of(run)
    groups = distinct_groups(kinds)
    if config.train.precision == "bf16" and not has_bf16(ctx.source.device):
        say(f"train: {ctx.source.device} has no bfloat16 in hardware; the encoder's product stays float32")
    key = training_key(run, groups, start)
    logs = {name: LogFile(run.file(name)) for name in LOGS}
    training = Training(ctx, groups, start, key, logs)
    began = time.perf_counter()
    with ranks.first_goes_ahead():
        passes = passes_of(ctx, kinds, key)
        checkpoints = [training.checkpoints(one) for one in passes]
        resumed = _goes_on(training, passes, checkpoints)
        known = resumed or not ranks.first
        scales = scales_of(ctx, known)
        layer_maps = layer_maps_of(ctx, known, groups, scales)
    measuring = time.perf_counter() - began
    records: list[TrainRecord] = []
    for one, kept in zip(passes, checkpoints, strict=True):
        records.append(training.done(one) or training.run(one, kept, scales, layer_maps, measuring, records))
        measuring = 0.0
    record = merged(records)
    ranks.barrier()
    if not ranks.first:
        return None
    run.write("scales.safetensors", scales.save)
    write_suite_index(run.path, suites_of(kinds, config.variants))
    remove_other_groups(run, record.saes)
    _clear_others(run, checkpoints)
    record.write(run)
    return files_of(record, bool(layer_maps))


def files_of(record: TrainRecord, layer_maps: bool) -> list[str]:
    """The names of the files that a finished training leaves."""
    weights = [f"groups/{name}/{file}" for name in record.saes for file in ("cfg.json", "sae.safetensors")]
    weights += [f"groups/{name}/{LAYER_MAPS_FILE}" for name in record.saes if layer_maps]
    return ["train.json", *LOGS, "suite.json", "scales.safetensors", *weights]


@dataclass(frozen=True)
class Training:
    """What the passes of one training have in common."""

    ctx: RunContext
    groups: tuple[Group, ...]
    start: WarmStart | None
    key: str
    logs: dict[str, LogFile]
    only: frozenset[str] | None = None
    """The names of the SAEs that are trained, where others train the rest."""

    def jobs(self, one: Pass, scales: Scales, layer_maps: Mapping[Group, LayerMaps]) -> dict[str, TrainJob]:
        """The SAEs that a pass trains, by name: every group for every variant of it."""
        ctx, config = self.ctx, self.ctx.run.config
        starts = self.start.starts(ctx.hookpoints, scales) if self.start else {}
        return {
            sae_name(group, variant.name): TrainJob(
                group,
                config.train,
                starts.get(group_name(group)),
                layer_maps[group].for_width(variant.sae.width(ctx.source.d_model)) if layer_maps else None,
                variant.sae,
                variant.seed,
            )
            for variant in one.variants
            for group in self.groups
            if self.only is None or sae_name(group, variant.name) in self.only
        }

    @property
    def read_cost(self) -> float:
        """FLOPs of reading a token."""
        return float(self.ctx.architecture.forward_flops(self.ctx.run.config.text.context_length))

    def trackers(self) -> Trackers:
        """What hands the log on to the libraries that the config names; of several ranks the first does."""
        run, config = self.ctx.run, self.ctx.run.config
        tracked = TrackedRun(config.name, run.file(TRACKERS_FOLDER), flat(config))
        return Trackers(config.train.report_to if self.ctx.ranks.first else (), tracked, say)

    def names(self, one: Pass) -> list[str]:
        """The names of the SAEs that a pass trains."""
        names = [sae_name(group, variant.name) for variant in one.variants for group in self.groups]
        return [name for name in names if self.only is None or name in self.only]

    def checkpoints(self, one: Pass) -> Checkpoints:
        """The checkpoints of a pass. They must agree in config, the text as it was read, groups and first weights."""
        run, names = self.ctx.run, " ".join(map(group_name, self.groups))
        _, text, first, *_ = self.key.split(" ")
        return Checkpoints(
            run.file(one.folder) if one.folder else run.path,
            " ".join([self.key, *([one.folder] if one.folder else [])]),
            keep=run.config.train.keep_checkpoints,
            settings=flat(run.config) | {"text": text, "groups": names, "first weights": first},
            logs=tuple(self.logs.values()),
            ranks=self.ctx.ranks,
        )

    def done(self, one: Pass) -> PassRecord | None:
        """What a pass of several took, if it was done before."""
        return done_before(self.ctx.run, one, self.key, self.names(one))

    def run(
        self,
        one: Pass,
        checkpoints: Checkpoints,
        scales: Scales,
        layer_maps: Mapping[Group, LayerMaps],
        measuring: float,
        before: Sequence[TrainRecord],
    ) -> TrainRecord:
        """Train one pass and save its SAEs. `measuring` are seconds that went before; `before` the passes before."""
        run, config = self.ctx.run, self.ctx.run.config
        jobs = self.jobs(one, scales, layer_maps)
        if before and self.ctx.ranks.first and not checkpoints.exist:
            _cut(self.logs, before[-1].logs)
        with (
            self.trackers() as trackers,
            _resumable(run) as stop,
            bar(f"train{one.label}", config.train.num_tokens) as advance,
        ):
            trained = train_together(
                self.ctx.source,
                jobs,
                scales,
                config.sae,
                config.train,
                seed=config.seed,
                buffer_tokens=config.activations.buffer_tokens,
                checkpoints=checkpoints,
                hooks=Hooks(
                    progress=advance,
                    log=lambda record: _log(self.logs, record, trackers),
                    resumed=lambda progress: _tell(checkpoints, progress),
                    planned=_tell_plan,
                    chosen=lambda choice: say(f"train: kernel of the steps: {choice}"),
                    stop=stop,
                ),
                ranks=self.ctx.ranks,
                read_cost=0.0 if self.ctx.ranks.alone else self.read_cost,
            )
        for name, sae in trained.saes.items():
            save_sae(sae, run.file(f"groups/{name}"), trained.layer_maps.get(name))
        trained.seconds["language model"] += measuring
        record = _facts(self.ctx, trained, jobs, one, checkpoints.snapshots())
        return self._finish(one, record) if one.folder else record

    def _finish(self, one: Pass, record: TrainRecord) -> PassRecord:
        """Write down that a pass of several is done."""
        lengths = {name: log.sync() for name, log in self.logs.items()}
        done = PassRecord(**dict(record), key=self.key, logs=lengths)
        done.write(self.ctx.run, one.record_path)
        return done


def _cut(logs: Mapping[str, LogFile], lengths: Mapping[str, int]) -> None:
    """Forget what was logged after these lengths."""
    for name, length in lengths.items():
        logs[name].cut(length)


def _goes_on(training: Training, passes: Sequence[Pass], checkpoints: Sequence[Checkpoints]) -> bool:
    """Whether a training goes on from where it was; else its logs are emptied, and it must not end another's."""
    ctx = training.ctx
    if ctx.overwrite and ctx.ranks.first and ctx.run.status("train") == "done":
        _forget(ctx.run, passes, checkpoints)
    if any(one.exist for one in checkpoints) or training.done(passes[0]):
        return True
    _require_no_other(ctx, checkpoints[0])
    for name in training.logs:
        ctx.run.write_text(name, "")
    return False


def training_key(run: RunDirectory, groups: Sequence[Group], start: WarmStart | None) -> str:
    """What a training is known by: its config, the text as it was read, first weights, groups."""
    text = run.manifest.files("tokens")[ROWS_FILE].sha256
    first = start.digest([group[0] for group in groups])[:16] if start else "random"
    return " ".join([run.fingerprint("train"), text[:16], first, *map(group_name, groups)])


def _forget(run: RunDirectory, passes: Sequence[Pass], checkpoints: Sequence[Checkpoints]) -> None:
    """Remove the checkpoints of a training that is made again, and what says that passes of it are done."""
    for one, kept in zip(passes, checkpoints, strict=True):
        kept.clear()
        if one.folder:
            run.file(one.record_path).unlink(missing_ok=True)


def _require_no_other(ctx: RunContext, checkpoints: Checkpoints) -> None:
    """Raises RunError, naming what differs, if an unfinished training of other settings would be lost."""
    other = unfinished(ctx.run.path)
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
        alone = current_ranks().alone
        then = "finishing this step and saving." if alone else "finishing this block and saving, on all ranks."
        with noted(then, repeats=0.0 if alone else REPEATS) as stop:
            yield stop
    except Interrupted as stopped:
        message = f"{stopped} Saved. The same command goes on from there, or `groupsae run {run.path}`."
        raise Interrupted(stopped.signal, message.strip()) from None


def _facts(
    ctx: RunContext, trained: Trained, jobs: Mapping[str, TrainJob], one: Pass, snapshots: dict[int, list[str]]
) -> TrainRecord:
    config, d_model = ctx.run.config, ctx.source.d_model
    prefix = f"{one.folder}/" if one.folder else ""
    return TrainRecord(
        num_tokens=config.train.num_tokens,
        tokens_saved=sum(config.train.num_tokens - lineage.tokens for lineage in trained.lineages.values()),
        d_model=d_model,
        d_sae=config.sae.width(d_model),
        k=config.sae.k,
        seconds={part: trained.seconds[part] for part in PARTS},
        saes={
            name: {"seconds": trained.seconds[name], "hookpoints": job.group, **dict(trained.lineages[name])}
            for name, job in jobs.items()
        },
        scales=dict(zip(trained.scales.hookpoints, trained.scales.scale_L.tolist(), strict=True)),
        snapshots={tokens: [prefix + file for file in files] for tokens, files in snapshots.items()},
        masked_positions=trained.masked,
        kernel=asdict(trained.kernel),
        variants={variant.name: _variant_facts(variant, d_model) for variant in one.variants if variant.name},
        ranks=_shares(ctx, trained),
    )


def _shares(ctx: RunContext, trained: Trained) -> tuple[RankShare, ...]:
    """What each of several ranks did with its time."""
    if ctx.ranks.alone:
        return ()
    pairs = zip(ctx.ranks.hosts, trained.rank_seconds, strict=True)
    return tuple(RankShare(host=host, **{part: round(spent, 3) for part, spent in one.items()}) for host, one in pairs)


def _variant_facts(variant: Variant, d_model: int) -> TrainedVariant:
    return TrainedVariant(
        setting=variant.setting,
        seed=variant.seed,
        architecture=variant.sae.architecture,
        d_sae=variant.sae.width(d_model),
        k=variant.sae.k,
    )


def _log(logs: dict[str, LogFile], record: dict[str, Any], trackers: Trackers) -> None:
    how = ("seconds", "micro_batches", "kernel")
    logs["metrics.jsonl"].append({key: value for key, value in record.items() if key not in how})
    logs["timing.jsonl"].append({key: value for key, value in record.items() if key != "groups"})
    trackers.log(record)
    for name, facts in record["groups"].items():
        if facts["skipped"]:
            say(f"train: {facts['skipped']} steps of {name} skipped before step {record['step']} (NaN or infinity)")


def _tell_plan(plan: ClusterPlan) -> None:
    cut = sum(len(owners) > 1 for owners in plan.owners)
    parts = [f"train: {plan.num_ranks} ranks for {len(plan.owners)} SAEs"]
    parts += [f"{cut} of them cut by latents"] * bool(cut)
    parts += [f"rank {', '.join(map(str, plan.readers_only))} only reading"] * bool(plan.readers_only)
    say(f"{'; '.join(parts)}; the busiest has {plan.imbalance:.2f} times the mean work")


def _tell(checkpoints: Checkpoints, progress: Progress) -> None:
    for fault in checkpoints.damaged:
        say(f"train: passed over: {fault}")
    say(f"train: going on from step {progress.step} ({progress.position.tokens:,} tokens)")


def _clear_others(run: RunDirectory, ours: Iterable[Checkpoints]) -> None:
    """Remove checkpoints of before, of a training that had other passes."""
    kept = {one.folder for one in ours}
    for folder in checkpoint_folders(run.path):
        if folder not in kept:
            Checkpoints(folder, key="").clear()


def remove_other_groups(run: RunDirectory, kept: Iterable[str]) -> None:
    """Removes the folders of groups of before; a link that leads elsewhere is only unlinked."""
    if run.file("groups").is_symlink():
        return
    for folder in run.file("groups").iterdir():
        if folder.is_symlink():
            folder.unlink()
        elif folder.name not in kept:
            shutil.rmtree(folder)
