"""`tokens/index.json`: how much text was read, and how much of it is held out."""

from __future__ import annotations

from typing import ClassVar

from groupsae.records.types.record import Record


class TokensRecord(Record):
    """The rows of tokens of a run."""

    path: ClassVar[str] = "tokens/index.json"

    rows: int
    """Rows to train on."""
    context_length: int
    """Tokens per row."""
    training_tokens: int
    training_documents: int
    held_out_tokens: int
    held_out_documents: int
    replaced: int = 0
    """Places that were not valid UTF-8."""
