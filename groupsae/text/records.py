"""What a row of data holds: a text, chat messages or token ids, under a field that may be nested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from groupsae.errors import TextError
from groupsae.text.document import Document
from groupsae.text.notes import ReadingNotes

MISSING = object()


class NoField(TextError):
    """An object lacks the field that was asked for."""


def document_in(row: Any, field: str, where: str, notes: ReadingNotes) -> Document | None:
    """The document under `field` of a row; None, and counted, if that is null or empty.

    `meta.text` is the field of that name, or else `text` inside `meta`. A list of messages with a
    role and a content is a chat; a list of integers is a document that is tokenized already. Raises
    TextError that says what was found in place of these.
    """
    value = look_up(row, field)
    if value is MISSING:
        found = ", ".join(_names(row)) if isinstance(row, dict) else _python_name(row)
        raise NoField(f"{where} has no text under {field!r} (it has: {found}). Set text.field.")
    if value is None or (isinstance(value, str | list) and not value):
        notes.num_empty += 1
        return None
    if isinstance(value, str):
        return Document(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))  # JSON may hold "\ud800"
    if isinstance(value, list) and all(_is_integer(item) for item in value):
        if max(value) >= 2**31 or min(value) < 0:
            raise TextError(f"{where}: {field!r} holds {_extreme(value)}, which is no token id.")
        return Document("", ids=np.array(value, dtype=np.int64))
    if isinstance(value, list) and all(_is_message(item) for item in value):
        return Document("", messages=tuple(value))
    raise TextError(
        f"{where}: {field!r} holds {_kind(value)}. It should hold a text, a list of chat messages with 'role' and "
        f"'content', or a list of token ids. Set text.field{_hint(value, field)}."
    )


def look_up(row: Any, field: str) -> Any:
    """The value under a field's name, or along its dots; `MISSING` if there is none."""
    if not isinstance(row, dict):
        return MISSING
    if field in row:
        return row[field]
    value: Any = row
    for part in field.split("."):
        if value is None:
            return None
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def _names(row: dict[Any, Any]) -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, dict) and value:
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield str(key)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value and "content" in value


def _extreme(ids: list[int]) -> int:
    return min(ids) if min(ids) < 0 else max(ids)


def _kind(value: Any) -> str:
    """A value named as what it is."""
    if isinstance(value, bool):
        return f"{str(value).lower()}, a truth value"
    if isinstance(value, int | float):
        return f"the number {value:g}"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value)) or 'nothing in it'}"
    if isinstance(value, list):
        kinds = {_item_kind(item) for item in value}
        return f"a list of {' and '.join(sorted(kinds))}"
    return f"a value of type {_python_name(value)}"


def _item_kind(item: Any) -> str:
    if item is None:
        return "null"
    if isinstance(item, dict):
        return f"objects with {', '.join(map(str, item)) or 'nothing in them'}"
    names = {str: "texts", bool: "truth values", int: "integers", float: "numbers", list: "lists"}
    return names.get(type(item), f"values of type {_python_name(item)}")


def _hint(value: Any, field: str) -> str:
    texts = [key for key, inner in value.items() if isinstance(inner, str)] if isinstance(value, dict) else []
    return f", for example to {f'{field}.{texts[0]}'!r}" if texts else ""


def _python_name(value: Any) -> str:
    return type(value).__name__
