"""The loop: for each batch a step of every group that has not finished, with evaluations, logs and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from groupsae.activations.shuffle import Position, ShuffledStream
from groupsae.config import TrainConfig
from groupsae.distributed.ranks import Ranks
from groupsae.errors import Interrupted
from groupsae.partition import Group
from groupsae.training.checkpoint import Checkpoints, Progress
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.hooks import EvalHook, Hooks
from groupsae.training.journal import Journal, add_seconds
from groupsae.training.kernel_choice import KernelChoice, choose_kernel

PARTS = ("language model", "SAE steps", "shuffle buffer", "checkpoints", "other")
"""What the seconds of training are divided into."""


class _AllFinished(Exception):
    """No group of any rank takes another step, as the ranks found when they met."""


class Loop:
    """Steps through the stream; owns the step count and the seconds spent.

    `groups` are this rank's own, `served` the layers of all ranks' groups by name. Ranks meet once per block, while it
    is read: there they learn which groups have finished, whether a signal came, and what was logged and saved.
    """

    def __init__(
        self,
        stream: ShuffledStream,
        groups: list[GroupTrainer],
        train: TrainConfig,
        checkpoints: Checkpoints | None,
        hooks: Hooks,
        served: Mapping[str, Group],
    ) -> None:
        self.stream, self.groups, self.train = stream, groups, train
        self.checkpoints, self.hooks, self.evaluating = checkpoints, hooks, 0.0
        self.served, self.names = served, tuple(served)
        self.step, self.position = 0, Position()
        self.kernel: KernelChoice | None = None
        self.journal = Journal(self.names, PARTS, checkpoints, hooks.log)
        self._finished: set[str] = set()
        self._last: tuple[int, int, Position] | None = None
        self._late: dict[str, Any] = {}
        stream.needed, stream.message, stream.heard = self._needed, self._message, self._heard
        self.seconds = dict.fromkeys((*PARTS, *self.names), 0.0)
        self.rank_seconds: list[dict[str, float]] = []

    @property
    def ranks(self) -> Ranks:
        """The ranks that train together."""
        return self.stream.ranks

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        found = self.checkpoints and self.checkpoints.load(self.groups)
        if found:
            self.step, self.position, self.kernel = found.step, found.position, found.kernel
            if self.ranks.first:  # what all ranks have spent, which must be counted once
                self.seconds |= found.seconds
            if self.hooks.progress:
                self.hooks.progress(found.position.tokens)
            if self.hooks.resumed:
                self.hooks.resumed(found)
            self._note_finished(found.position.tokens)
            told = self.ranks.gather([group.name for group in self.groups if group.finished])
            self._finished = {name for names in told for name in names}

    def choose_kernel(self) -> None:
        """Find the kernel and precision that steps use, unless a checkpoint names them: the same on all ranks."""
        before, train = self.kernel, self.train
        saes = [group.sae for group in self.groups if group.cut is None]
        chooser = next((rank for rank, owns in enumerate(self.ranks.gather(bool(saes))) if owns), None)
        chosen = before or KernelChoice()
        if self.ranks.rank == chooser:
            chosen = choose_kernel(saes, train.batch_tokens, before, train.precision)
        self.kernel = KernelChoice(**self.ranks.gather(asdict(chosen))[chooser or 0])
        if saes and self.ranks.rank != chooser:
            choose_kernel(saes, train.batch_tokens, self.kernel, train.precision)
        if self.hooks.chosen and self.kernel != before and self.kernel.measured:
            self.hooks.chosen(self.kernel)

    def run(self) -> None:
        """Step until every group has finished. Raises Interrupted, after saving, if `hooks.stop` asks for it."""
        self._began, self._spent, self._before = time.perf_counter(), sum(self._parts()), dict(self.seconds)
        try:
            self._run()
        except _AllFinished:
            self._finish_early()
        if not self.ranks.alone:
            self._meet_last()
        told = self.ranks.gather([self._shares(), self.seconds])
        self.rank_seconds, self.seconds = [shares for shares, _ in told], add_seconds([spent for _, spent in told])

    def _run(self) -> None:
        for position, batch in () if self._ended else self.stream.batches(self.position):
            for group in self._unfinished():
                started = time.perf_counter()
                group.take(batch, self.step)
                self.seconds[group.name] += time.perf_counter() - started
            before, self.position, self.step = self.position.tokens, position, self.step + 1
            if self.hooks.progress:
                self.hooks.progress(batch.count)
            self._account()
            self._note_finished(before)
            if self.hooks.eval and self._due(before, self.hooks.eval.every_tokens):
                self._evaluate(self.hooks.eval)
            if self._due(before, self.train.log_every_tokens):
                self._log()
            signal = self._signal() if self.ranks.alone else 0
            wanted = self._snapshots_wanted(before)
            if self._due(before, self.train.save_every_tokens) or wanted or signal:
                self._save(wanted)
            if self.ranks.alone:
                self.journal.write([self.journal.take()], self.kernel)
            if self._ended:
                break
            if signal:
                raise self._interrupted(signal)

    # ---- meeting the other ranks

    def _needed(self) -> list[str]:
        """Hookpoints of groups that have not finished; of those that other ranks train, as far as is known."""
        finished = {group.name for group in self.groups if group.finished} if self.ranks.alone else self._finished
        return [name for group in self.names if group not in finished for name in self.served[group]]

    def _message(self) -> dict[str, Any]:
        return {
            "entries": self.journal.take(),
            "finished": [group.name for group in self.groups if group.finished],
            "last": self._last and [self._last[0], self._last[1], asdict(self._last[2])],
            "signal": self._signal(),
        }

    def _heard(self, told: list[dict[str, Any]]) -> None:
        """Take note of what all ranks say. Raises _AllFinished or Interrupted, on every rank alike."""
        self._finished = {name for one in told for name in one["finished"]}
        done = self._finished == set(self.names)
        if done:
            step, before, position = max((one["last"] for one in told if one["last"]), key=lambda last: last[0])
            self._last = (step, before, Position(**position))
        told_entries = [one["entries"] for one in told]
        if done:
            told_entries = self._without_late(told_entries)
        self._write(told_entries)
        if done:
            raise _AllFinished
        signal = max(one["signal"] for one in told)
        if signal:
            self._save([])
            self._write(self.ranks.gather(self.journal.take()))
            raise self._interrupted(signal)

    def _write(self, told: list[list[dict[str, Any]]]) -> None:
        if self.ranks.first:
            self.journal.write(told, self.kernel)

    def _without_late(self, told: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """Entries up to the step after which nobody had anything left to do; this rank's later readings are kept."""
        last = self._last[0]
        for entry in told[self.ranks.rank]:
            if entry["step"] > last and entry["kind"] == "log":
                self._late |= entry["groups"]
        return [[entry for entry in entries if entry["step"] <= last] for entries in told]

    def _finish_early(self) -> None:
        """Log and save at the step after which no rank had anything left to do, which they learned only later."""
        self.step, before, self.position = self._last
        self._log(self._late)
        self._save(self._snapshots_wanted(before))

    def _meet_last(self) -> None:
        """Write what was noted since the ranks met. Raises Interrupted if one of them got a signal meanwhile."""
        told = self.ranks.gather({"entries": self.journal.take(), "signal": self._signal()})
        self._write([one["entries"] for one in told])
        self.ranks.barrier()
        signal = max(one["signal"] for one in told)
        if signal:
            raise self._interrupted(signal)

    def _signal(self) -> int:
        return self.hooks.stop() if self.hooks.stop else 0

    def _interrupted(self, signal: int) -> Interrupted:
        return Interrupted(signal, f"Stopped after step {self.step}, at {self.position.tokens:,} tokens.")

    # ---- what is due

    def _evaluate(self, hook: EvalHook) -> None:
        started = time.perf_counter()
        hook.on_eval(self.position.tokens, {group.name: group.sae for group in self.groups})
        self.evaluating += time.perf_counter() - started

    def _unfinished(self) -> list[GroupTrainer]:
        return [group for group in self.groups if not group.finished]

    @property
    def _ended(self) -> bool:
        """Whether no group takes another step; of those of other ranks, as far as the tokens tell."""
        if self.ranks.alone:
            return not self._unfinished()
        return self.position.tokens >= self.stream.num_tokens or self._finished == set(self.names)

    def _note_finished(self, before: int) -> None:
        if self._last is None and self.groups and not self._unfinished():
            self._last = (self.step, before, self.position)

    def _snapshots_wanted(self, before: int) -> list[int]:
        return [tokens for tokens in self.train.snapshots if before < tokens <= self.position.tokens]

    def _account(self) -> None:
        stream, seconds = self.stream, self.seconds
        seconds["language model"] += stream.read_seconds
        seconds["shuffle buffer"] += stream.keep_seconds
        stream.read_seconds = stream.keep_seconds = 0.0
        seconds["SAE steps"] = sum(seconds[name] for name in self.names)
        known = sum(seconds[part] for part in PARTS if part != "other") + self.evaluating
        seconds["other"] = max(0.0, self._spent + time.perf_counter() - self._began - known)

    def _shares(self) -> dict[str, float]:
        """What this rank did with its time, since it began or was resumed."""
        self._account()
        spent = {part: self.seconds[part] - self._before[part] for part in PARTS}
        shares = {
            "reading": spent["language model"],
            "exchanging": spent["shuffle buffer"],
            "training": spent["SAE steps"],
            "saving": spent["checkpoints"],
            "waiting": self.stream.wait_seconds,
        }
        return shares | {"other": max(0.0, time.perf_counter() - self._began - sum(shares.values()))}

    def _parts(self) -> list[float]:
        return [self.seconds[part] for part in PARTS]

    def _due(self, before: int, every: int) -> bool:
        now = self.position.tokens
        return now // every > before // every or self._ended

    def _log(self, late: dict[str, Any] | None = None) -> None:
        for group in self.groups:
            group.require_finite(self.step)
        splits = max((group.split.splits for group in self.groups), default=1)
        groups = {
            group.name: {"tokens": group.schedule.seen}
            | reading
            | group.faults.read()
            | {"learning_rate": group.optimizer.param_groups[0]["lr"]}
            for group in self.groups
            if (reading := group.meter.read())
        }
        self.journal.note_log(self.step, self.position.tokens, self.seconds, splits, (late or {}) | groups)

    def _save(self, snapshots: list[int]) -> None:
        for group in self.groups:
            group.require_finite(self.step)
        if self.checkpoints:
            began = time.perf_counter()
            files = self.checkpoints.save_states(self.groups, self.step)
            progress = Progress(self.step, self.position, dict(self.seconds), self.kernel)
            self.journal.note_save(progress, snapshots, files)
            self.seconds["checkpoints"] += time.perf_counter() - began
