"""Answers that were paid for, on disk: one SQLite file, keyed by the digest of the request."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from groupsae.errors import RunError, StorageError
from groupsae.storage import storage_errors

TABLE = """CREATE TABLE IF NOT EXISTS answers (
    digest TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL)"""


@dataclass(frozen=True)
class Answer:
    """What the judge wrote, the tokens that the server counted, and the seconds that it took."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


def request_digest(body: Mapping[str, Any]) -> str:
    """The SHA-256 of a request's body. The address of the server does not count, the model's name does."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """The answers in a file, which is made if need be. A process that is killed loses none that it was given.

    Raises RunError for a file that is damaged or holds something else, StorageError if the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._open: sqlite3.Connection | None = None
        self._do("PRAGMA journal_mode = WAL")
        self._do("PRAGMA synchronous = NORMAL")  # a sync for each answer would cost more time than many judges do
        self._do(TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._open:
            self._open.close()

    def __len__(self) -> int:
        return self._do("SELECT count(*) FROM answers")[0][0]

    def get(self, body: Mapping[str, Any]) -> Answer | None:
        """The answer to a request; None if it has none yet."""
        found = self._do(
            "SELECT answer, prompt_tokens, completion_tokens, seconds FROM answers WHERE digest = ?",
            request_digest(body),
        )
        return Answer(*found[0]) if found else None

    def put(self, body: Mapping[str, Any], answer: Answer) -> None:
        """Keep an answer."""
        request = json.dumps(body, sort_keys=True)
        values = (request, answer.text, answer.prompt_tokens, answer.completion_tokens, answer.seconds)
        self._do("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", request_digest(body), *values)

    def median_seconds(self, model: str) -> float | None:
        """The median time of a model's answers; None if there are none."""
        found = self._do(
            "SELECT seconds FROM answers WHERE json_extract(request, '$.model') = ? ORDER BY seconds", model
        )
        return found[len(found) // 2][0] if found else None

    def _do(self, command: str, *values: Any) -> list[Any]:
        try:
            self._open = self._open or sqlite3.connect(self.path, isolation_level=None)
            return self._open.execute(command, values).fetchall()
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"Cannot use {self.path}: {error}. Free space or permissions are needed, or the file is in use; the "
                "answers in it are intact. --cache names another."
            ) from error
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"{self.path} is no file of answers, or damaged: {error}. Move it away, or give another with --cache; "
                "what it held will be asked, and paid, again."
            ) from error
