"""Pairs of prompts that differ in what decides the next token, and the files they are read from.

A file of pairs is JSON: one object per line, or one array of objects, each with four texts

    {"clean_prefix": "Jane wanted to play.", "patch_prefix": "John wanted to play.",
     "clean_answer": " She", "patch_answer": " He"}

(the form of Marks et al. 2024, arXiv 2403.19647). An answer is what follows its prompt, its space
included. Other keys are left alone. A file should ask both ways, with as many `She` as `He`: means
over its clean prompts then say nothing about the answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupsae.errors import TextError

KEYS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")
_FORM = f"Each line (or each object of one array) needs the texts {', '.join(KEYS)}."


@dataclass(frozen=True)
class PromptPair:
    """A prompt, the same prompt with what decides the answer exchanged, and the right answer to each."""

    clean_prefix: str
    patch_prefix: str
    clean_answer: str
    patch_answer: str


def read_pairs(path: str | Path) -> list[PromptPair]:
    """The pairs in a JSON file, in its order. Raises TextError naming the file and the line or entry at fault."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TextError(f"There is no file of prompt pairs {path}. {_FORM}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as text: {error}.") from None
    entries = _array(path, text) if text.lstrip().startswith("[") else _lines(path, text)
    pairs = [_pair(value, where) for where, value in entries]
    if not pairs:
        raise TextError(f"{path} holds no prompt pair. {_FORM}")
    return pairs


def _array(path: Path, text: str) -> list[tuple[str, Any]]:
    return [(f"{path}, entry {number}", value) for number, value in enumerate(_parse(text, str(path)), start=1)]


def _lines(path: Path, text: str) -> list[tuple[str, Any]]:
    numbered = [(f"{path}, line {number}", line) for number, line in enumerate(text.splitlines(), start=1)]
    return [(where, _parse(line, where)) for where, line in numbered if line.strip()]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TextError(f"{where} is not JSON: {error}. {_FORM}") from None


def _pair(value: Any, where: str) -> PromptPair:
    found = value if isinstance(value, dict) else {}
    wrong = [key for key in KEYS if not isinstance(found.get(key), str) or not found[key]]
    if wrong:
        has = ", ".join(map(str, found)) or f"a {type(value).__name__}"
        raise TextError(f"{where} has no text under {', '.join(wrong)} (it has: {has}). {_FORM}")
    if found["clean_answer"] == found["patch_answer"]:
        raise TextError(f"{where} has one answer, {found['clean_answer']!r}, to both prompts; they must differ.")
    return PromptPair(**{key: found[key] for key in KEYS})
