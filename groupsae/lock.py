"""The lock on a run directory: one process at a time, and a name for whoever has it.

The operating system ties the lock to the process, so that a crash frees it. Where it offers no
such lock (Windows, some network drives) a file that must not exist yet stands in for it; that one
outlives a crash, and the message says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from groupsae.errors import RunError
from groupsae.storage import storage_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE, STAND_IN = ".lock", ".lock-by-name"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Has the lock on a folder, which is made if need be, while the block runs.

    Raises RunError that names the process which has it, StorageError if the folder cannot be written.
    """
    path = folder / LOCK_FILE
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(path)
        if handle is None:
            path.unlink(missing_ok=True)
            path = folder / STAND_IN
            handle = _create(path)
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(_ourselves()).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int | None:
    """The file, open and locked for us; None where the system has no locks. Raises RunError if it is taken."""
    while fcntl:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise RunError(_taken(path)) from None
        except OSError:  # no locks on this file system
            os.close(handle)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # its last holder has removed it meanwhile
    return None


def _create(path: Path) -> int:
    """The file, newly made. Raises RunError if it is there."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise RunError(f"{_taken(path)} If that process is gone, remove {path}.") from None


def _ourselves() -> dict[str, str | int]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"pid": os.getpid(), "host": platform.node(), "since": since}


def _taken(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {int(holder['pid'])} on {str(holder['host'])[:100]!r} since {str(holder['since'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{path.parent} is in use by {who}. Wait for it, end it, or give another place with --out."
