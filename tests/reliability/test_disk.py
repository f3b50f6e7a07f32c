"""A disk that is full or not to be written, and a clock that jumps: a clear error, and nothing lost."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import permissions
import pytest
from children import results, spawn, untrained, wait
from torture import note, times

FLAGS = ("--num-tokens", 1024, "--save-every-tokens", 200, "--log-every-tokens", 128)


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The results of a training on a disk with room enough."""
    folder = untrained(place, tmp_path_factory.mktemp("whole") / "run")
    assert wait(spawn("train", folder, *FLAGS)) == 0
    return results(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize("room", [1200, 5000, 9000])
def test_a_full_disk_ends_in_words_and_training_goes_on_once_there_is_room(place, tmp_path, whole, room):
    """Room for no log; for logs but no state; for neither the manifest nor the last line."""
    import resource

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    folder, err = untrained(place, tmp_path / "run"), tmp_path / "err"
    before = contents(folder)
    code = wait(spawn("train", folder, *FLAGS, first=fill, err=err))
    message = err.read_text()
    assert code == 2 and "StorageError: Cannot write" in message and "File too large" in message, message
    assert "Traceback" not in message
    after = contents(folder)
    assert {name: after[name] for name in before if name != "config.toml"} == {
        name: content for name, content in before.items() if name != "config.toml"
    }
    assert wait(spawn("train", folder, *FLAGS, err=err)) == 0, err.read_text()
    assert results(folder) == whole


@pytest.mark.parametrize("command", [("eval", "--overwrite"), ("train", "--overwrite"), ("report", "--overwrite")])
def test_a_read_only_run_can_be_looked_at_and_says_so_when_written(done, call, command):
    verb, *flags = command
    before = contents(done)
    for folder in (done, *(path for path in done.rglob("*") if path.is_dir())):
        folder.chmod(0o500)
    with permissions.binding():
        assert call("show", done)[0] == 0
        code, _, err = call(verb, done, *flags)
    assert code == 2 and "StorageError" in err and "Permission denied" in err and "Traceback" not in err
    assert contents(done) == before


def test_a_clock_that_jumps_changes_nothing(place, tmp_path, whole, call, monkeypatch):
    choose = random.Random(5)
    monkeypatch.setattr(time, "time", lambda: choose.uniform(-1e9, 1e10))
    monkeypatch.setattr(time, "monotonic", map(float, itertools.count(10**9, -1)).__next__)
    folder = untrained(place, tmp_path / "run")
    assert call("train", folder, *FLAGS)[0] == 0
    assert results(folder) == whole
    assert call("run", folder)[0] == 0
    assert '"stale"' not in call("show", folder, "--json")[1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_open_files_do_not_grow(tmp_path):
    """Steps of a training whose checkpoints and log lines come all the time, in a process of its own."""
    steps, early = times(1500, 200_000), times(500, 1000)
    figures = tmp_path / "figures"
    train = lambda: figures.write_text(json.dumps(_train_long(tmp_path / "run", steps, early)))  # noqa: E731
    assert wait(spawn("--version", first=train), longest=1200) == 0
    (memory, files), (memory_then, files_then) = json.loads(figures.read_text())
    growth = memory_then / memory - 1
    note(f"{steps:,} steps: resident memory {growth:+.2%} since step {early:,}, open files {files} and {files_then}")
    assert growth < 0.02
    assert files_then == files


def _train_long(folder: Path, steps: int, early: int) -> list[tuple[int, int]]:
    sys.path.append(str(Path(__file__).parents[1] / "training"))
    from training_cases import TRAIN, run

    from groupsae.training.log import LogFile

    seen: list[tuple[int, int]] = []
    done = 0

    def progress(tokens: int) -> None:
        nonlocal done
        done += 1
        if done in (early, steps - 1):
            seen.append(_usage())

    settings = TRAIN.model_copy(
        update={"num_tokens": 8 * steps, "batch_tokens": 8, "log_every_tokens": 800, "save_every_tokens": 8000}
    )
    log = LogFile(folder / "metrics.jsonl")
    folder.mkdir()
    run([("layers.1",)], train=settings, folder=folder, progress=progress, log=log.append, buffer_tokens=64)
    return seen


def _usage() -> tuple[int, int]:
    """Resident memory in pages, and open files."""
    return int(Path("/proc/self/statm").read_text().split()[1]), len(os.listdir("/proc/self/fd"))
