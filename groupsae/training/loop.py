"""The loop: for each batch a step of every group that has not finished, with evaluations, logs and checkpoints."""

from __future__ import annotations

import time

from groupsae.activations.shuffle import Position, ShuffledStream
from groupsae.config import TrainConfig
from groupsae.errors import Interrupted
from groupsae.training.checkpoint import Checkpoints, Progress
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.hooks import EvalHook, Hooks
from groupsae.training.kernel_choice import KernelChoice, choose_kernel

PARTS = ("language model", "SAE steps", "shuffle buffer", "checkpoints", "other")
"""What the seconds of training are divided into."""


class Loop:
    """Steps through the stream; owns the step count and the seconds spent."""

    def __init__(
        self,
        stream: ShuffledStream,
        groups: list[GroupTrainer],
        train: TrainConfig,
        checkpoints: Checkpoints | None,
        hooks: Hooks,
    ) -> None:
        self.stream, self.groups, self.train = stream, groups, train
        self.checkpoints, self.hooks, self.evaluating = checkpoints, hooks, 0.0
        self.step, self.position = 0, Position()
        self.kernel: KernelChoice | None = None
        stream.needed = lambda: [name for group in self._unfinished() for name in group.group]
        self.seconds = dict.fromkeys((*PARTS, *(group.name for group in groups)), 0.0)

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        found = self.checkpoints and self.checkpoints.load(self.groups)
        if found:
            self.step, self.position, self.seconds = found.step, found.position, self.seconds | found.seconds
            self.kernel = found.kernel
            if self.hooks.progress:
                self.hooks.progress(found.position.tokens)
            if self.hooks.resumed:
                self.hooks.resumed(found)

    def choose_kernel(self) -> None:
        """Find the kernel that steps use, unless a checkpoint names it."""
        before = self.kernel
        saes, train = [group.sae for group in self.groups], self.train
        self.kernel = choose_kernel(saes, train.batch_tokens, before, train.precision)
        if self.hooks.chosen and self.kernel != before and self.kernel.measured:
            self.hooks.chosen(self.kernel)

    def run(self) -> None:
        """Step until every group has finished. Raises Interrupted, after saving, if `hooks.stop` asks for it."""
        began, spent = time.perf_counter(), sum(self._parts())
        for position, batch in () if self._ended else self.stream.batches(self.position):
            for group in self._unfinished():
                started = time.perf_counter()
                group.take(batch, self.step)
                self.seconds[group.name] += time.perf_counter() - started
            before, self.position, self.step = self.position.tokens, position, self.step + 1
            if self.hooks.progress:
                self.hooks.progress(batch.count)
            self._account(began, spent)
            if self.hooks.eval and self._due(before, self.hooks.eval.every_tokens):
                self._evaluate(self.hooks.eval)
            if self._due(before, self.train.log_every_tokens):
                self._log()
            signal = self.hooks.stop() if self.hooks.stop else 0
            wanted = [tokens for tokens in self.train.snapshots if before < tokens <= self.position.tokens]
            if self._due(before, self.train.save_every_tokens) or wanted or signal:
                self._save(wanted)
            if self._ended:
                break
            if signal:
                raise Interrupted(signal, f"Stopped after step {self.step}, at {self.position.tokens:,} tokens.")

    def _evaluate(self, hook: EvalHook) -> None:
        started = time.perf_counter()
        hook.on_eval(self.position.tokens, {group.name: group.sae for group in self.groups})
        self.evaluating += time.perf_counter() - started

    def _unfinished(self) -> list[GroupTrainer]:
        return [group for group in self.groups if not group.finished]

    @property
    def _ended(self) -> bool:
        return not self._unfinished()

    def _account(self, began: float, spent: float) -> None:
        stream, seconds = self.stream, self.seconds
        seconds["language model"] += stream.read_seconds
        seconds["shuffle buffer"] += stream.keep_seconds
        stream.read_seconds = stream.keep_seconds = 0.0
        seconds["SAE steps"] = sum(seconds[group.name] for group in self.groups)
        known = sum(seconds[part] for part in PARTS if part != "other") + self.evaluating
        seconds["other"] = max(0.0, spent + time.perf_counter() - began - known)

    def _parts(self) -> list[float]:
        return [self.seconds[part] for part in PARTS]

    def _due(self, before: int, every: int) -> bool:
        now = self.position.tokens
        return now // every > before // every or self._ended

    def _log(self) -> None:
        for group in self.groups:
            group.require_finite(self.step)
        record = {"step": self.step, "tokens": self.position.tokens, "seconds": round(sum(self._parts()), 3)}
        record["micro_batches"] = max(group.split.splits for group in self.groups)
        record["kernel"] = self.kernel.name
        record["groups"] = {
            group.name: {"tokens": group.schedule.seen}
            | reading
            | group.faults.read()
            | {"learning_rate": group.optimizer.param_groups[0]["lr"]}
            for group in self.groups
            if (reading := group.meter.read())
        }
        if self.hooks.log:
            self.hooks.log(record)

    def _save(self, snapshots: list[int]) -> None:
        for group in self.groups:
            group.require_finite(self.step)
        if self.checkpoints:
            began = time.perf_counter()
            self.checkpoints.save(self.groups, Progress(self.step, self.position, self.seconds, self.kernel), snapshots)
            self.seconds["checkpoints"] += time.perf_counter() - began
