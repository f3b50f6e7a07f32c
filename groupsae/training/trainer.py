"""The loop: one pass over the model trains every group of every partition side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from groupsae.activations.scale import Scales, measure_scales
from groupsae.activations.shuffle import Lanes, Position, ShuffledStream
from groupsae.activations.source import ActivationSource
from groupsae.config import ActivationsConfig, SAEConfig, TopKConfig, TrainConfig
from groupsae.errors import ConfigError, Interrupted, PartitionError
from groupsae.partition import Group, Partition
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.suite import Suite
from groupsae.training.checkpoint import Checkpoints, Progress
from groupsae.training.group import GroupInTraining

PARTS = ("language model", "SAE steps", "shuffle buffer", "checkpoints", "other")
"""What the seconds of training are divided into."""


@dataclass(frozen=True)
class Trained:
    """What training gave: an SAE per group, the scales, and where the seconds went (by part, and by group)."""

    saes: dict[str, SparseAutoencoder]
    scales: Scales
    seconds: dict[str, float]

    def suite(self, partition: Partition) -> Suite:
        """The suite of one partition whose groups were all trained."""
        return Suite(partition, {name: self.saes[name] for name in partition.names}, self.scales)


def train(
    source: ActivationSource,
    partition: Partition,
    sae: SAEConfig = TopKConfig(),  # noqa: B008 - frozen
    train: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
    *,
    seed: int = 0,
    buffer_tokens: int = ActivationsConfig().buffer_tokens,
    progress: Callable[[int], None] | None = None,
) -> Suite:
    """The suite of a partition: one SAE per group, trained in one pass over the source.

    `Partition.singletons(hookpoints)` is one SAE per layer. Raises PartitionError if the
    partition names a hookpoint that the source does not read, ConfigError for sizes that do not
    fit each other, NumericalError for NaN.
    """
    _require_possible(source, partition.groups, sae, train, buffer_tokens)
    scales = measure_scales(source, train.scale_tokens, centre=train.centre, seed=seed)
    trained = train_groups(
        source, partition.groups, scales, sae, train, seed=seed, buffer_tokens=buffer_tokens, progress=progress
    )
    return trained.suite(partition)


def train_groups(
    source: ActivationSource,
    groups: Iterable[Group],
    scales: Scales,
    sae: SAEConfig,
    train: TrainConfig,
    *,
    seed: int,
    buffer_tokens: int,
    checkpoints: Checkpoints | None = None,
    progress: Callable[[int], None] | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    resumed: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
) -> Trained:
    """An SAE for each distinct group, all trained on the same batches.

    Per batch activations are read once; each group sees every token at one drawn layer, or in turn at all
    of its layers. With `checkpoints`, states are saved there every `save_every_tokens`,
    and training goes on from the last one, if there is one (`resumed` is told). `log` gets a record
    every `log_every_tokens`; `progress` the tokens of each step. Once `stop` gives the number of a
    signal, the state is saved after the step and Interrupted raised.
    """
    distinct = dict.fromkeys(Partition((group,)).groups[0] for group in groups)
    _require_possible(source, distinct, sae, train, buffer_tokens)
    in_training = [GroupInTraining(group, scales, source.d_model, sae, train, seed) for group in distinct]
    lanes = Lanes.of(distinct, every_layer=train.layers_per_token == "all")
    num_tokens = max(group.tokens_needed for group in in_training)
    stream = ShuffledStream(source, num_tokens, lanes, train.batch_tokens, buffer_tokens, seed)
    loop = _Loop(stream, in_training, train, checkpoints, progress, log, stop)
    loop.resume(resumed)
    loop.run()
    return Trained({group.name: group.trained() for group in in_training}, scales, loop.seconds)


def _require_possible(
    source: ActivationSource, groups: Iterable[Group], sae: SAEConfig, train: TrainConfig, buffer_tokens: int
) -> None:
    """Raises, before anything is read, what does not fit together."""
    unknown = sorted({name for group in groups for name in group} - set(source.hookpoints))
    if unknown:
        raise PartitionError(f"{', '.join(unknown)} are not read; the source has {', '.join(source.hookpoints)}.")
    sae.width(source.d_model)
    if buffer_tokens < train.batch_tokens:
        raise ConfigError(
            f"buffer_tokens = {buffer_tokens} holds less than one batch of {train.batch_tokens} tokens; raise "
            "buffer_tokens or lower batch_tokens."
        )


class _Loop:
    """Steps through the stream; owns the step count and the seconds spent."""

    def __init__(
        self,
        stream: ShuffledStream,
        groups: list[GroupInTraining],
        train: TrainConfig,
        checkpoints: Checkpoints | None,
        progress: Callable[[int], None] | None,
        log: Callable[[dict[str, Any]], None] | None,
        stop: Callable[[], int] | None,
    ) -> None:
        self.stream, self.groups, self.train = stream, groups, train
        self.checkpoints, self.progress, self.log, self.stop = checkpoints, progress, log, stop
        self.step, self.position = 0, Position()
        stream.needed = lambda: [name for group in self._unfinished() for name in group.group]
        self.seconds = dict.fromkeys((*PARTS, *(group.name for group in groups)), 0.0)

    def resume(self, resumed: Callable[[Progress], None] | None) -> None:
        found = self.checkpoints and self.checkpoints.load(self.groups)
        if found:
            self.step, self.position, self.seconds = found.step, found.position, self.seconds | found.seconds
            if self.progress:
                self.progress(found.position.tokens)
            if resumed:
                resumed(found)

    def run(self) -> None:
        began, spent = time.perf_counter(), sum(self._parts())
        for position, batch in self.stream.batches(self.position):
            for group in self._unfinished():
                started = time.perf_counter()
                group.take(batch, self.step, self.position.tokens)
                self.seconds[group.name] += time.perf_counter() - started
            before, self.position, self.step = self.position.tokens, position, self.step + 1
            if self.progress:
                self.progress(batch.count)
            self._account(began, spent)
            if self._due(before, self.train.log_every_tokens):
                self._log()
            signal = self.stop() if self.stop else 0
            wanted = [tokens for tokens in self.train.snapshots if before < tokens <= self.position.tokens]
            if self._due(before, self.train.save_every_tokens) or wanted or signal:
                self._save(wanted)
            if signal and self.position.tokens < self.stream.num_tokens:
                raise Interrupted(signal, f"Stopped after step {self.step}, at {self.position.tokens:,} tokens.")

    def _unfinished(self) -> list[GroupInTraining]:
        return [group for group in self.groups if not group.finished(self.position.tokens)]

    def _account(self, began: float, spent: float) -> None:
        stream, seconds = self.stream, self.seconds
        seconds["language model"] += stream.read_seconds
        seconds["shuffle buffer"] += stream.keep_seconds
        stream.read_seconds = stream.keep_seconds = 0.0
        seconds["SAE steps"] = sum(seconds[group.name] for group in self.groups)
        known = sum(seconds[part] for part in PARTS if part != "other")
        seconds["other"] = max(0.0, spent + time.perf_counter() - began - known)

    def _parts(self) -> list[float]:
        return [self.seconds[part] for part in PARTS]

    def _due(self, before: int, every: int) -> bool:
        now = self.position.tokens
        return now // every > before // every or now >= self.stream.num_tokens

    def _log(self) -> None:
        for group in self.groups:
            group.require_finite(self.step)
        record = {"step": self.step, "tokens": self.position.tokens, "seconds": round(sum(self._parts()), 3)}
        record["micro_batches"] = max(group.micro_batches.parts for group in self.groups)
        record["groups"] = {
            group.name: {"tokens": min(self.train.num_tokens, group.turns * self.position.tokens)}
            | group.meter.read()
            | group.watch.read()
            | {"learning_rate": group.optimizer.param_groups[0]["lr"]}
            for group in self.groups
        }
        if self.log:
            self.log(record)

    def _save(self, snapshots: list[int]) -> None:
        for group in self.groups:
            group.require_finite(self.step)
        if self.checkpoints:
            began = time.perf_counter()
            self.checkpoints.save(self.groups, Progress(self.step, self.position, self.seconds), snapshots)
            self.seconds["checkpoints"] += time.perf_counter() - began
