"""Files on disk: written whole or not at all, described by size and SHA-256, never outside their folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from groupsae.errors import RunError, StorageError

PART = ".part"
"""How the name of a file ends that is still being written."""
SAFETENSORS_PART = ".tmp" + 6 * "[0-9A-Za-z]"
"""A file that safetensors (0.8) writes before it renames it, such as `.tmp0fTRmt`."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, sync it to disk and rename it into place.

    Raises StorageError, with `path` as it was before, if the disk refuses.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=PART, dir=path.parent)
        os.close(handle)
        scratch = Path(name)
        try:
            write(scratch)
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.chmod(0o644)
            scratch.replace(path)
            _sync_folder(path.parent)
        finally:
            scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; nobody else may be writing there."""
    with storage_errors(folder):
        for path in (*folder.rglob(f".*{PART}"), *folder.rglob(SAFETENSORS_PART)):
            path.unlink(missing_ok=True)


def append_json(path: Path, value: Any) -> None:
    """Append one line of JSON; NaN and infinity are refused."""
    line = json.dumps(value, allow_nan=False) + "\n"
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(line)


def describe(path: Path) -> dict[str, Any]:
    """A file's `bytes` and `sha256`."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def digest(value: Any) -> str:
    """A value that JSON can hold, as a hash of 16 digits; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def within(folder: Path, name: str) -> Path:
    """The path of `name` below `folder`. Raises RunError for a name that leads out of it."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise RunError(f"{name[:200]!r} is no place within {folder}; the file that names it is damaged or not ours.")
    return folder / name


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals into StorageError with the path and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise StorageError(
            f"Cannot write {path}: {getattr(error, 'strerror', None) or error}. Free space or permissions are needed; "
            "what was there before is intact."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power cut, where the system can do that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
