"""`contexts/index.json`: what the contexts stage found, and where its shards lie."""

from __future__ import annotations

from typing import ClassVar

from groupsae.records.types.record import Record, RecordPart


class ShardRecord(RecordPart):
    """One file of latents that stand next to each other."""

    file: str
    first: int
    """The number of its first latent."""
    count: int


class DictionaryRecord(RecordPart):
    """One SAE at all layers of its group. Suites that share an SAE share its dictionary."""

    suite: str
    """The first suite that has it."""
    suites: tuple[str, ...]
    group: str
    layers: tuple[str, ...]
    """The hookpoints that it serves, in order."""
    d_sae: int
    silent: int
    """Latents that fire at none of the layers."""
    others: tuple[tuple[int, ...], ...]
    """For each layer the dictionaries of other suites that serve it too, by their numbers in `dictionaries`."""
    shards: tuple[ShardRecord, ...]


class ContextsRecord(Record):
    """What was read, and the dictionaries whose latents were looked at."""

    path: ClassVar[str] = "contexts/index.json"

    text: str
    """`held-out` or `training`."""
    num_tokens: int
    """Positions that count; those that the run leaves out do not."""
    num_rows: int
    row_tokens: int
    window: int
    """Tokens per window."""
    top: int
    quantiles: int
    per_quantile: int
    final_norm: str | None
    """The module of the final norm that promoted tokens went through, below the base model."""
    promotes: bool
    """Whether the model has an output embedding, so that promoted tokens are known."""
    histogram_bins: int
    dictionaries: tuple[DictionaryRecord, ...]


class VocabularyRecord(Record):
    """The tokens of the model as text, by id; empty for ids without a token."""

    path: ClassVar[str] = "contexts/vocabulary.json"

    tokens: tuple[str, ...]
