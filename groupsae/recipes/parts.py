"""A training in parts without a network between them: each a job of its own, put together afterwards.

    groupsae train RUN --part 3/16        trains its share of the SAEs: `parts/3-of-16/`, and their `groups/`
    groupsae merge RUN [COPY ...]         puts the parts together, of this run directory and of copies of it

Every part reads the text itself, so all read it as often as there are parts.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupsae.errors import ConfigError, RunError
from groupsae.lock import hold
from groupsae.partition import Partition
from groupsae.progress import say
from groupsae.recipes.context import RunContext
from groupsae.recipes.normalization import SCALES_IN_TRAINING, layer_maps_of, scales_of
from groupsae.recipes.passes import Pass, merged
from groupsae.recipes.run import alone
from groupsae.recipes.suites import distinct_groups, kinds_of, suites_of
from groupsae.recipes.train import LOGS, Training, files_of, remove_other_groups, training_key
from groupsae.recipes.warm_start import warm_start_of
from groupsae.records import RunDirectory
from groupsae.records.types.training import PassRecord, TrainRecord
from groupsae.saes.scales import Scales
from groupsae.saes.suite import write_suite_index
from groupsae.storage import sweep, write_atomically
from groupsae.training.log import LogFile
from groupsae.training.trainer import TrainJob, plan_ranks

MOST_REPEATED = 0.2
"""The share of repeated work from which on something else is advised."""


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, counted from 1."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> Part:
        """The part that `3/16` names. Raises ConfigError for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        part = cls(*map(int, found.groups())) if found else None
        if part is None or not 1 <= part.number <= part.count:
            raise ConfigError(f"--part {text!r} is no part; give its number and how many there are, such as 3/16.")
        return part

    @property
    def folder(self) -> str:
        """Where its checkpoints and records lie, below the run's directory."""
        return f"parts/{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def train_part(run: RunDirectory, part: Part) -> None:
    """Train a part's share of the SAEs; several parts of a run may be trained at the same time.

    Raises ConfigError for more parts than SAEs, or under torchrun; RunError if an earlier stage is missing, or if the
    same part is in training already.
    """
    run.require(*run.before("train"))
    ctx = RunContext(run)
    if not ctx.ranks.alone:
        raise ConfigError("--part is for jobs without a network between them; leave it out under torchrun.")
    with hold(run.file(part.folder)):
        sweep(run.file(part.folder))
        run.adopt()
        training, one = _training(ctx, part)
        if training.done(one):
            say(f"part {part}: done already")
            return
        checkpoints = training.checkpoints(one)
        if not checkpoints.exist:
            for log in training.logs.values():
                log.sync()
                log.cut(0)
        began = time.perf_counter()
        scales = scales_of(ctx, checkpoints.exist)
        layer_maps = layer_maps_of(ctx, checkpoints.exist, training.groups, scales)
        training.run(one, checkpoints, scales, layer_maps, time.perf_counter() - began, ())
    say(f"part {part} is done. Once all are, `groupsae merge {run.path}` puts them together.")


def merge(run: RunDirectory, copies: Sequence[Path] = ()) -> None:
    """Put the parts of a training together, as if one process had trained all SAEs.

    `copies` are copies of this run directory in which other parts were trained; what they trained is copied here.
    Raises RunError naming the parts that are missing, or that are of another training.
    """
    run.require(*run.before("train"))
    with alone(run):
        ctx = RunContext(run)
        kinds, key, names = _wanted(ctx)
        began, found = time.perf_counter(), {}
        for folder in (run.path, *copies):
            found |= {part: record for part, record in _records(folder, key).items() if part not in found}
        parts = _complete(run, found, names)
        for part, (folder, record) in parts.items():
            if folder != run.path:
                _copy(folder, run.path, [part.folder, *(f"groups/{name}" for name in record.saes)])
        record = _together([record for _, record in parts.values()], names)
        _merge_logs(run, list(parts), names)
        scales = next(folder / SCALES_IN_TRAINING for folder, _ in parts.values())
        run.write("scales.safetensors", Scales.load(scales, tuple(record.scales)).save)
        write_suite_index(run.path, suites_of(kinds, run.config.variants))
        remove_other_groups(run, record.saes)
        record.write(run)
        layer_maps = run.config.group.layer_maps.any
        run.finish("train", sum(record.seconds.values()), files_of(record, layer_maps))
        say(f"merged {len(parts)} parts with {len(names)} SAEs in {time.perf_counter() - began:.1f} s")


def _training(ctx: RunContext, part: Part) -> tuple[Training, Pass]:
    """The training of a part's SAEs: those that a plan for so many ranks gives to one of them."""
    run, start = ctx.run, warm_start_of(ctx)
    kinds = _kinds(ctx)
    groups = distinct_groups(kinds)
    logs = {name: LogFile(run.file(f"{part.folder}/{name}")) for name in LOGS}
    whole = Training(ctx, groups, start, training_key(run, groups, start), logs)
    one = Pass(run.config.variants, part.folder, f" {part}")
    names = whole.names(one)
    if part.count > len(names):
        raise ConfigError(f"--part {part}, but there are only {len(names)} SAEs to train; use at most so many parts.")
    config, jobs = run.config, {}
    for variant in one.variants:
        own = Training(ctx, groups, start, whole.key, logs).names(Pass((variant,)))
        jobs |= {name: TrainJob(g, config.train, sae=variant.sae) for name, g in zip(own, groups, strict=True)}
    plan = plan_ranks(jobs, part.count, config.sae, ctx.source.d_model, whole.read_cost)
    repeated = (part.count - 1) * plan.read_cost / (part.count * plan.read_cost + sum(plan.training))
    if repeated > MOST_REPEATED:
        say(
            f"part {part}: {repeated:.0%} of the FLOPs of all parts are repeated passes over the text. Under torchrun "
            f"it is read once for all SAEs: `torchrun --nproc-per-node N -m groupsae train {run.path}` "
            "(docs/many-machines.md)."
        )
    only = frozenset(name for name, owners in zip(jobs, plan.owners, strict=True) if part.number - 1 in owners)
    return Training(ctx, groups, start, whole.key, logs, only), one


def _kinds(ctx: RunContext) -> dict[str, Partition]:
    warm = ctx.run.config.train.warm_start.source is not None
    return {"groups": Partition.singletons(ctx.hookpoints)} if warm else kinds_of(ctx.run)


def _wanted(ctx: RunContext) -> tuple[dict[str, Partition], str, list[str]]:
    """The suites of the run, what its training is known by, and the names of all SAEs."""
    kinds, start = _kinds(ctx), warm_start_of(ctx)
    groups = distinct_groups(kinds)
    key = training_key(ctx.run, groups, start)
    return kinds, key, Training(ctx, groups, start, key, {}).names(Pass(ctx.run.config.variants))


def _records(folder: Path, key: str) -> dict[Part, tuple[Path, PassRecord]]:
    """The finished parts of this training in a run directory."""
    run = RunDirectory.open(folder)
    found: dict[Part, tuple[Path, PassRecord]] = {}
    for path in sorted(folder.glob("parts/*-of-*/train.json")):
        record = PassRecord.read(run, str(path.relative_to(folder)))
        if record.key != key:
            raise RunError(
                f"{path.parent} is of another training: its config, text, groups or first weights differ. Remove it, "
                "or merge the run that it belongs to."
            )
        number, count = path.parent.name.split("-of-")
        found[Part(int(number), int(count))] = (folder, record)
    return found


def _complete(
    run: RunDirectory, found: dict[Part, tuple[Path, PassRecord]], names: Iterable[str]
) -> dict[Part, tuple[Path, PassRecord]]:
    """The parts of one division that are all there. Raises RunError naming those that are missing."""
    counts = {part.count for part in found}
    whole = [count for count in counts if sum(part.count == count for part in found) == count]
    if whole:
        return {part: found[part] for part in sorted(found, key=lambda part: part.number) if part.count == whole[0]}
    if not found:
        raise RunError(f"{run.path} has no finished part. Train them by `groupsae train {run.path} --part 1/N`.")
    count = max(counts)
    missing = [number for number in range(1, count + 1) if Part(number, count) not in found]
    first = f"groupsae train {run.path} --part {missing[0]}/{count}"
    raise RunError(
        f"{run.path} lacks part {', '.join(map(str, missing))} of {count}. Train them, beginning with `{first}`, or "
        f"name the copies of the run directory in which they lie: `groupsae merge {run.path} COPY ...`."
    )


def _copy(folder: Path, to: Path, names: Iterable[str]) -> None:
    """Copy folders of a run directory into another, each file whole or not at all."""
    for name in (*names, SCALES_IN_TRAINING):
        for path in [folder / name] if (folder / name).is_file() else (folder / name).rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                write_atomically(
                    to / path.relative_to(folder), lambda scratch, path=path: shutil.copyfile(path, scratch)
                )


def _together(records: Sequence[PassRecord], names: Sequence[str]) -> TrainRecord:
    """What the parts took together, their SAEs in the order of one training."""
    record = merged(records)
    return record.model_copy(update={"passes": (), "saes": {name: record.saes[name] for name in names}})


def _merge_logs(run: RunDirectory, parts: Sequence[Part], names: Sequence[str]) -> None:
    """The lines of all parts by step, as one training would have logged them."""
    metrics: dict[int, dict[str, Any]] = {}
    timing: dict[int, dict[str, Any]] = {}
    for part in parts:
        for line in _lines(run, f"{part.folder}/metrics.jsonl"):
            metrics.setdefault(line["step"], line | {"groups": {}})["groups"] |= line["groups"]
        for line in _lines(run, f"{part.folder}/timing.jsonl"):
            before = timing.setdefault(line["step"], line | {"seconds": 0.0})
            before["seconds"] = round(before["seconds"] + line["seconds"], 3)
            before["micro_batches"] = max(before["micro_batches"], line["micro_batches"])
    for line in metrics.values():
        line["groups"] = {name: line["groups"][name] for name in names if name in line["groups"]}
    for name, lines in (("metrics.jsonl", metrics), ("timing.jsonl", timing)):
        run.write_text(name, "".join(json.dumps(lines[step]) + "\n" for step in sorted(lines)))


def _lines(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.file(name).read_text(encoding="utf-8").splitlines()]
