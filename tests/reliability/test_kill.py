"""kill -9 at any moment, then the same command: every byte as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from children import results, spawn, untrained, wait
from torture import note, times

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

COMMON = ("--num-tokens", 1024, "--save-every-tokens", 200, "--log-every-tokens", 128, "--snapshots", 300)
RUNS = {
    "baseline and groups": ("train", *COMMON),
    "groups alone": ("train", "--no-baseline", *COMMON),
    "transfer": ("train", "--warm-start.source", "runs/tiny", *COMMON),
}
"""Kinds of training: the verb and its flags. A further kind needs one more row."""
DISK_CALLS = ("fsync", "replace", "unlink", "ftruncate")


@pytest.fixture(scope="module", params=RUNS)
def kind(request, place, tmp_path_factory):
    """A kind of training: its command on a folder, the results of a run that nobody killed, and its seconds."""
    verb, *flags = (place / flag if flag == "runs/tiny" else flag for flag in RUNS[request.param])
    whole = untrained(place, tmp_path_factory.mktemp("whole") / "run")
    began = time.monotonic()
    assert wait(spawn(verb, whole, *flags)) == 0
    return request.param, lambda folder: (verb, folder, *flags), results(whole), time.monotonic() - began


def test_killed_at_random_moments(kind, place, tmp_path):
    name, command, expected, seconds = kind
    choose, kills, finished = random.Random(11), 0, 0
    wanted = times(2, 20)
    while kills < wanted:
        folder = untrained(place, tmp_path / f"run{finished}")
        while True:
            pid = spawn(*command(folder), err=tmp_path / "err")
            if kills < wanted:
                time.sleep(choose.uniform(0.2, 1.0) * seconds)
                os.kill(pid, signal.SIGKILL)
            code = wait(pid)
            if code == 0:
                break
            assert code == -signal.SIGKILL, (tmp_path / "err").read_text()
            kills += 1
        assert results(folder) == expected
        finished += 1
    note(f"killed at random moments, {name}: {kills} times in {finished} runs, 0 differing bytes")


def test_killed_before_any_call_that_changes_the_disk(kind, place, tmp_path):
    """Syncing, renaming, removing: a process that ends right before each of them, saves included."""
    name, command, expected, _ = kind
    counted = tmp_path / "count"
    folder = untrained(place, tmp_path / "counting")
    assert wait(spawn(*command(folder), first=lambda: _die_before(10**9, counted))) == 0
    total = len(counted.read_bytes())
    step = max(1, total // times(3, 40))
    tried = sorted({*range(2, total + 1, step), total})  # the last one leaves the lock's file
    for number in tried:
        folder = untrained(place, tmp_path / f"run{number}")
        assert wait(spawn(*command(folder), first=lambda n=number: _die_before(n))) == -signal.SIGKILL
        code = wait(spawn(*command(folder), err=tmp_path / "err"))
        assert code == 0, (number, (tmp_path / "err").read_text())
        assert results(folder) == expected, number
    note(f"killed before a change to the disk, {name}: {len(tried)} of {total} places, 0 differing bytes")


def _die_before(number: int, counted: Path | None = None) -> None:
    """From now on, the call of this number that changes the disk kills the process instead."""
    calls = 0
    log = counted.open("ab", buffering=0) if counted else None

    def counting(call):
        def counted_call(*arguments, **options):
            nonlocal calls
            calls += 1
            if log:
                log.write(b".")
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted_call

    for name in DISK_CALLS:
        setattr(os, name, counting(getattr(os, name)))
