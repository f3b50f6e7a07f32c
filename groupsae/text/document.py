"""One document: its text, its chat messages, or its token ids."""

from __future__ import annotations

import codecs
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

BYTE_ORDER_MARKS = (  # UTF-32's begins like UTF-16's, so it is looked for first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Document:
    """A text, or chat messages or token ids in place of it; and its side of the split, if that is fixed already."""

    text: str
    held_out: bool | None = None
    num_replaced: int = 0
    """Places where bytes that are not in the text's encoding became U+FFFD."""
    ids: np.ndarray | None = None
    """Token ids, where the source holds these and no text."""
    messages: tuple[dict[str, Any], ...] | None = None
    """Chat messages with `role` and `content`, where the source holds these and no text."""

    @classmethod
    def from_bytes(cls, content: bytes, held_out: bool | None = None) -> Document:
        """The document in a file's bytes, a byte order mark left out."""
        text, num_replaced = decode(content)
        return cls(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), held_out, num_replaced)

    @property
    def digest(self) -> bytes:
        """A hash of what the document holds: equal for duplicates."""
        if self.ids is not None:
            content = b"ids" + self.ids.astype("<i8").tobytes()
        elif self.messages is not None:
            content = json.dumps(self.messages, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        else:
            content = self.text.encode("utf-8", "surrogatepass")
        return hashlib.sha256(content).digest()


def encoding_of(content: bytes) -> str:
    """The encoding that the first bytes of a file show: UTF-16 or UTF-32 by its byte order mark, else UTF-8."""
    return next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")


def decode(content: bytes) -> tuple[str, int]:
    """The text of bytes, and how many U+FFFD in it stand for bytes that could not be decoded."""
    encoding = encoding_of(content)
    text = content.decode(encoding, "replace")
    if encoding != "utf-8":
        return text, 0 if _decodes(content, encoding) else text.count("\ufffd")
    return text, text.count("\ufffd") - content.count("\ufffd".encode())


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
