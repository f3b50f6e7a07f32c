"""`eval/similarity.json`: what dictionaries share."""

from __future__ import annotations

from typing import ClassVar

from groupsae.records.types.record import Record, RecordPart


class DictionaryName(RecordPart):
    """An SAE: the first suite that has it, and its group."""

    suite: str
    group: str


class ConcordanceRecord(RecordPart):
    """How far the SAEs of two suites at one hookpoint fire together."""

    hookpoint: str
    one: DictionaryName
    other: DictionaryName
    one_in_other: float | None
    other_in_one: float | None
    silent_one: int
    silent_other: int


class SpreadingRecord(RecordPart):
    """How the latents of a group's SAE spread over its layers."""

    layers: tuple[str, ...]
    entropy: float | None
    entropy_histogram: tuple[int, ...]
    mean_layer: float | None
    layer_histogram: tuple[int, ...]
    one_layer_share: float | None
    firing_share: tuple[float, ...]
    silent: int


class MatchingRecord(RecordPart):
    """One-to-one pairs of rows of two dictionaries."""

    share: float
    mean_cosine: float | None
    pairs: int
    method: str


class StabilityRecord(RecordPart):
    """How much of a group's SAE another suite's SAE of the same group found again."""

    group: str
    one: str
    other: str
    matching: MatchingRecord


class SimilarityRecord(Record):
    """What dictionaries share."""

    path: ClassVar[str] = "eval/similarity.json"

    units: dict[str, str]
    num_tokens: int
    sample_tokens: int
    threshold: float
    dictionaries: tuple[DictionaryName, ...]
    mmcs: tuple[tuple[float | None, ...], ...]
    """None for dictionaries of a sweep's different variants, which are not compared."""
    mmcs_random: tuple[float, ...]
    concordance: tuple[ConcordanceRecord, ...]
    spreading: dict[str, dict[str, SpreadingRecord]]
    stability: tuple[StabilityRecord, ...]
