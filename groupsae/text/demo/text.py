"""The text of the built-in model: the Python standard library of whoever runs it."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
"""Folders that are not program text: tests, installed packages, generated tables."""

HELD_OUT_TENTH = 0
"""Files whose path hashes to this residue modulo ten were never trained on, on any Python version."""


def standard_library_files(held_out: bool | None = None) -> list[Path]:
    """The `.py` files of the running Python's standard library, sorted by path.

    `held_out=False` gives the files the built-in language model was trained on, `True` the
    other tenth, `None` all of them. The split is a hash of the path relative to the library,
    so it is the same on every machine.
    """
    root = standard_library_path()
    relative = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    kept = [path for path in relative if not LEFT_OUT & set(path.parts)]
    return [root / path for path in kept if held_out is None or is_held_out(path) == held_out]


def standard_library_path() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_held_out(relative_path: Path) -> bool:
    """True if the file at this path (relative to the standard library) is held out."""
    digest = hashlib.sha256(relative_path.as_posix().encode()).digest()
    return digest[0] % 10 == HELD_OUT_TENTH
