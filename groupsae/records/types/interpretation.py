"""`eval/interpretation.json`: explanations of latents by a language model, and how well they predict firing."""

from __future__ import annotations

from typing import ClassVar

from groupsae.records.types.measured import Interval
from groupsae.records.types.record import Record, RecordPart


class SamplingRecord(RecordPart):
    """How many latents and windows were judged."""

    latents: int
    num_tokens: int
    window_tokens: int
    explained: int
    scored: int
    shown: int
    seed: int
    layers: tuple[str, ...]
    """Those that were asked for; empty for all."""


class VerdictsRecord(RecordPart):
    """One latent's score with one explanation. Windows without an answer that can be read are not counted."""

    active: int
    right_active: int
    inactive: int
    right_inactive: int
    balanced_accuracy: float | None
    interval: Interval | None = None


class MeanAccuracyRecord(RecordPart):
    """A mean of latents' scores, and the latents and windows that it is of."""

    mean: float | None
    interval: Interval | None = None
    latents: int
    windows: int


class JudgedLatentRecord(RecordPart):
    """A latent of a suite at one layer, its explanation, and its scores."""

    latent: int
    firing_rate: float
    """Share of the tokens on which it fires."""
    explanation: str | None
    """None where there is no answer that can be read."""
    random_explanation: str | None
    """What the judge makes of windows and marks at random."""
    shuffled_from: int | None
    """The latent of the same SAE and layer whose explanation is the shuffled one."""
    scores: dict[str, dict[str, VerdictsRecord]]
    """By explanation (own, shuffled, random) and method (detection, fuzzing)."""


class JudgeRecord(RecordPart):
    """The judge, and what became of the requests to it; equal requests count once."""

    url: str
    model: str
    thinks: bool
    """Whether it was given room to think before it answers."""
    requests: int
    cached: int
    """Those that an earlier session had an answer to."""
    answered: int
    lost: dict[str, int]
    """Those without an answer, by the last fault; `not sent` where the judge was given up before."""
    faults: dict[str, int]
    """Faults of all attempts of the last session; most of them are followed by an answer."""
    said: dict[str, str]
    """What the server wrote with its first refusal of each status."""
    unread_explanations: int
    """Answers without an explanation that can be read."""
    unread_scores: int
    """Answers without a list of verdicts that can be read."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens of the last session, as the server counted them; 0 where it does not."""
    seconds: float
    verdict: str
    """Why the judge was given up; empty where it was not."""


class InterpretationRecord(Record):
    """Explanations of latents by a language model, and how well they predict firing."""

    path: ClassVar[str] = "eval/interpretation.json"

    units: dict[str, str]
    num_tokens: int
    """Held-out tokens that windows were taken from."""
    sampling: SamplingRecord
    judge: JudgeRecord
    complete: bool
    """Whether every request has an answer."""
    suites: dict[str, dict[str, tuple[JudgedLatentRecord, ...]]]
    """By suite and hookpoint."""
    layers: dict[str, dict[str, dict[str, dict[str, MeanAccuracyRecord]]]]
    """Means by suite, hookpoint, explanation and method."""
    over_layers: dict[str, dict[str, dict[str, MeanAccuracyRecord]]]
    """Means over all judged latents by suite, explanation and method."""
