"""Records of training handed to libraries that people watch runs with, beside metrics.jsonl.

Each library runs in a process of its own (`groupsae.training.tracker_process`). Training puts its records into a queue
and never waits for it; whatever goes wrong is one line, and training goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROJECT = "groupsae"
WAITING_RECORDS = 10_000
"""Records that a library may be behind."""
CLOSING_SECONDS = 60.0
"""Seconds that a library has to finish after the training."""


@dataclass(frozen=True)
class TrackedRun:
    """What libraries are told of a run: its name, its config as flat values, and where their files may lie."""

    name: str
    folder: Path
    config: Mapping[str, Any]


class Trackers:
    """The libraries of one training. Nothing here raises, and `log` never waits. `say` receives a line of each.

    with Trackers(["tensorboard"], run, print) as trackers: train_groups(..., hooks=Hooks(log=trackers.log))
    """

    def __init__(
        self,
        names: Sequence[str],
        run: TrackedRun,
        say: Callable[[str], None],
        *,
        closing_seconds: float = CLOSING_SECONDS,
    ) -> None:
        self._run, self._closing_seconds = run, closing_seconds
        self._trackers = [_Tracker(name, say) for name in dict.fromkeys(names)]
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for tracker in self._trackers:
            tracker.end_input()
        for tracker in self._trackers:
            tracker.close(self._closing_seconds)

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand on a record of training (`Hooks.log`); the step is its number of tokens."""
        step, values = int(record["tokens"]), scalars(record)
        if not self._started:
            self._started = True
            for tracker in self._trackers:
                tracker.start(self._run, step)
        for tracker in self._trackers:
            tracker.put({"step": step, "values": values})


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record by name; those of a group as `fvu/layers.0`, so that charts show all groups."""
    found = {name: value for name, value in record.items() if name not in ("tokens", "step", "groups")}
    found["steps"] = record.get("step")  # libraries keep the name `step` for themselves
    for group, facts in record.get("groups", {}).items():
        found |= {f"{name}/{group}": value for name, value in facts.items()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


class _Tracker:
    """One library in its process: a thread writes to it, another waits for how it ended."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self._say = name, say
        self._records: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING_RECORDS)
        self._process: subprocess.Popen[str] | None = None
        self._ended, self._lock = False, threading.Lock()
        self._reader: threading.Thread | None = None

    def start(self, run: TrackedRun, first_step: int) -> None:
        """Start the process, if the library is installed."""
        if importlib.util.find_spec(self.name) is None:
            self._end(f"it is not installed (pip install 'groupsae[{self.name}]')")
            return
        told = {
            "project": PROJECT,
            "name": run.name,
            "folder": str(run.folder),
            "config": dict(run.config),
            "first_step": first_step,
        }
        try:
            self._put(told)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "groupsae.training.tracker_process", self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the training, which then ends the input
            )
        except (OSError, ValueError) as error:
            self._end(f"its process does not start: {error}")
            return
        threading.Thread(target=self._write, daemon=True).start()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def put(self, record: dict[str, Any]) -> None:
        """Queue a record; a library that is too far behind is given up."""
        if not self._ended:
            try:
                self._put(record)
            except queue.Full:
                self._end(f"it is {WAITING_RECORDS:,} records behind")

    def end_input(self) -> None:
        """Tell the library that no more records come."""
        with contextlib.suppress(queue.Full):
            self._records.put_nowait(None)

    def close(self, seconds: float) -> None:
        """Wait for the library to finish; end its process where it does not."""
        if self._process is None:
            return
        try:
            self._process.wait(0 if self._ended else seconds)
        except subprocess.TimeoutExpired:
            self._end(f"it did not finish within {seconds:.0f} s after the training")
            self._process.kill()
            self._process.wait()
        if self._reader:
            self._reader.join(1)

    def _put(self, record: dict[str, Any]) -> None:
        self._records.put_nowait(record)

    def _write(self) -> None:
        """Write queued records until there are no more, or nobody reads them."""
        assert self._process and self._process.stdin
        with contextlib.suppress(OSError, ValueError), self._process.stdin as pipe:
            while (record := self._records.get()) is not None:
                pipe.write(json.dumps(record) + "\n")
                pipe.flush()

    def _read(self) -> None:
        """Wait for the line that says how it ended."""
        assert self._process and self._process.stdout
        try:
            said = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            said = {"fault": "its process ended"}
        if "done" in said:
            self._finish(f"train: {self.name}: {said['done']}")
        else:
            self._end(said["fault"])

    def _end(self, reason: str) -> None:
        self._finish(
            f"train: {self.name} records nothing from now on: {reason}. Training goes on; metrics.jsonl has all."
        )

    def _finish(self, line: str) -> None:
        with self._lock:
            if not self._ended:
                self._ended = True
                self._say(line)


def _environment() -> dict[str, str]:
    """This process's environment, in which the package is found wherever it was imported from."""
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
