"""Commands in a process of their own, which can be killed: a fork, so that nothing is imported anew."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from groupsae import cli
from groupsae.lock import LOCK_FILE

LONGEST = 120.0
"""Seconds after which a command counts as hung."""


def spawn(*arguments: object, first: Callable[[], None] = lambda: None, err: Path | None = None) -> int:
    """The id of a process that does `first` and then a command, its stderr in a file, if one is given."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        target = os.open(err or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        first()
        code = cli.main([str(argument) for argument in arguments])
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int, longest: float = LONGEST) -> int:
    """A process' exit code, negative where a signal ended it. Kills what hangs."""
    began = time.monotonic()
    while time.monotonic() - began < longest:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"hung for {longest} s")


def untrained(place: Path, folder: Path) -> Path:
    """A copy of the finished tiny run in which nothing from training on has been done."""
    shutil.copytree(place / "runs/tiny", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for stage in ("plan", "train", "contexts", "eval", "browse", "report"):
        for name in manifest["stages"].pop(stage)["files"]:
            (folder / name).unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in ("groups", "checkpoints", "contexts", "eval", "browser", "report"):
        shutil.rmtree(folder / name)
    (folder / "checkpoint-scales.safetensors").unlink()
    return folder


def results(folder: Path) -> dict[str, object]:
    """Everything that training left, to the byte; of what tells when, only what it tells it of."""
    exact = [
        *folder.glob("groups/**/*"),
        folder / "suite.json",
        folder / "scales.safetensors",
        folder / "metrics.jsonl",
    ]
    found: dict[str, object] = {str(p.relative_to(folder)): p.read_bytes() for p in exact if p.is_file()}
    for path in folder.glob("checkpoints/*"):
        manifest = json.loads(path.read_text())
        del manifest["seconds"], manifest["logs"]["timing.jsonl"]
        found[path.name] = manifest
    found["train.json"] = without_seconds(json.loads((folder / "train.json").read_text()))
    lines = map(json.loads, (folder / "timing.jsonl").read_text().splitlines())
    found["timing.jsonl"] = [(line["step"], line["tokens"]) for line in lines]
    found["hidden files"] = [path.name for path in folder.rglob(".*") if path.name != LOCK_FILE]  # harmless
    return found


def without_seconds(facts: object) -> object:
    """Facts that tell of a training, without how long it took."""
    if not isinstance(facts, dict):
        return facts
    return {key: without_seconds(value) for key, value in facts.items() if key != "seconds"}
