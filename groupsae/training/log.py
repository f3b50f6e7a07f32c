"""A log of JSON lines that a checkpoint knows the length of, so that going on leaves no gap and no line twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from groupsae.storage import append_json, storage_errors


class LogFile:
    """Lines of JSON in a file that is only appended to, or cut back to where a checkpoint was."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Write one line."""
        append_json(self.path, record)

    def sync(self) -> int:
        """The log's length in bytes, all of which is on disk."""
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                os.fsync(file.fileno())
                return file.tell()

    def cut(self, length: int) -> bool:
        """Forget all lines after this length; whether all lines before it are there."""
        with storage_errors(self.path), self.path.open("ab") as file:
            whole = file.tell() >= length
            file.truncate(min(length, file.tell()))
            return whole
