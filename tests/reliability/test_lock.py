"""One process at a time on a run directory."""

from __future__ import annotations

import json
import os
import platform
import signal
import time

import pytest
from children import spawn, wait

from groupsae import lock
from groupsae.errors import RunError, StorageError

needs_fork = pytest.mark.skipif(not hasattr(os, "fork") or lock.fcntl is None, reason="needs fork and flock")


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock on a folder until it is killed."""
    folder = tmp_path / "run"

    def keep():
        with lock.hold(folder):
            time.sleep(60)

    pid = spawn("--version", first=keep)
    began = time.monotonic()
    while not (folder / lock.LOCK_FILE).exists() or not (folder / lock.LOCK_FILE).read_text():
        assert time.monotonic() - began < 30
        time.sleep(0.01)
    yield folder, pid
    os.kill(pid, signal.SIGKILL)
    wait(pid)


@needs_fork
def test_a_second_process_is_told_who_is_at_work(holder):
    folder, pid = holder
    with (
        pytest.raises(RunError, match=rf"{folder} is in use by process {pid} on '{platform.node()}' since 20"),
        lock.hold(folder),
    ):
        pytest.fail("had the lock")


@needs_fork
@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("train", ()),
        ("eval", ()),
        ("export", ("--to", "saelens")),
    ],
)
def test_a_command_on_a_run_that_is_in_use_is_refused_and_looking_at_it_is_not(done, call, holder, verb, flags):
    folder, pid = holder
    done.rename(folder / "x")
    (folder / "x" / lock.LOCK_FILE).hardlink_to(folder / lock.LOCK_FILE)
    code, _, err = call(*verb.split(), folder / "x", "--overwrite", *flags)
    assert code == 2 and f"process {pid}" in err and "Traceback" not in err
    assert call("show", folder / "x")[0] == 0


@needs_fork
def test_a_crash_frees_the_lock(tmp_path):
    folder = tmp_path / "run"

    def crash():
        with lock.hold(folder):
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait(spawn("--version", first=crash)) == -signal.SIGKILL
    assert (folder / lock.LOCK_FILE).exists()
    with lock.hold(folder):
        assert json.loads((folder / lock.LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(folder.iterdir()) == []


def test_without_locks_of_the_system_the_file_itself_is_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    said = rf"process {os.getpid()} .*If that process is gone, remove {tmp_path}"
    with lock.hold(tmp_path), pytest.raises(RunError, match=said), lock.hold(tmp_path):
        pytest.fail("had the lock")
    with lock.hold(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"Cannot write .*file/run/\.lock"), lock.hold(tmp_path / "file" / "run"):
        pytest.fail("had the lock")
