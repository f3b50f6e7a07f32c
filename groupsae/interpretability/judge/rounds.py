"""Two rounds of questions: explanations first, then which windows fit them; beside each its floors.

Floors say what a score would be without understanding: the explanation of another latent of the same SAE and layer
(`shuffled`), and one that the same judge made from windows and marks at random (`random`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from groupsae.interpretability.judge.answers import read_explanation, read_verdicts
from groupsae.interpretability.judge.cache import Answer, request_digest
from groupsae.interpretability.judge.client import Body, Judge
from groupsae.interpretability.judge.prompts import METHODS, Method, RequestForm, explanation_request, score_request
from groupsae.interpretability.judge.sampling import LatentWindows, rng
from groupsae.interpretability.judge.scores import Verdicts
from groupsae.interpretability.window import Window

KINDS = ("own", "shuffled", "random")
"""Explanations that a latent is scored with: its own, and two floors."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Explanations:
    """The explanations that one latent is scored with, None where there is none; and whose the shuffled one is."""

    own: str | None = None
    random: str | None = None
    shuffled: str | None = None
    shuffled_from: int | None = None

    def of(self, kind: str) -> str | None:
        """The explanation of a kind."""
        return getattr(self, kind)


@dataclass(frozen=True)
class Question:
    """One request of a score: some windows of a latent, an explanation, and which windows activate."""

    latent: int
    kind: str
    method: Method
    explanation: str
    windows: tuple[Window, ...]
    truths: tuple[bool, ...]

    def body(self, form: RequestForm) -> dict[str, Any]:
        """What is sent."""
        return score_request(form, self.method, self.explanation, self.windows)


@dataclass
class Unread:
    """Answers that could not be read: requests, by what was asked for."""

    explanations: int = 0
    scores: int = 0


def explanation_bodies(form: RequestForm, latents: Sequence[LatentWindows]) -> list[dict[str, Any]]:
    """The requests of the first round: for each latent its explanation, then that of unrelated windows."""
    return [explanation_request(form, windows) for one in latents for windows in (one.explained, one.unrelated)]


def explain(judge: Judge, latents: Sequence[LatentWindows], unread: Unread, progress: Progress) -> list[Explanations]:
    """Ask for every latent's explanations; a latent without an answer that can be read has none."""
    bodies = explanation_bodies(judge.server.form, latents)
    answers = judge.ask(bodies, progress=progress)
    texts = [None if answer is None else read_explanation(answer.text) for answer in answers]
    unread.explanations += _unread(bodies, answers, texts)
    return [Explanations(own, other) for own, other in zip(texts[::2], texts[1::2], strict=True)]


def shuffle(latents: Sequence[LatentWindows], found: Sequence[Explanations], seed: int) -> list[Explanations]:
    """The same with another latent's explanation each: latents of one SAE and layer pass theirs on in a circle.

    A latent that is the only one with an explanation has no shuffled one.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for place, one in enumerate(latents):
        if found[place].own is not None:
            places.setdefault((one.suite, one.hookpoint), []).append(place)
    shuffled = list(found)
    for (_, hookpoint), ring in places.items():
        ring = [ring[i] for i in rng(seed, "shuffle", hookpoint).permutation(len(ring))]
        for place, giver in zip(ring, [*ring[1:], ring[0]], strict=True) if len(ring) > 1 else ():
            mine, its = found[place], found[giver]
            shuffled[place] = Explanations(mine.own, mine.random, its.own, latents[giver].latent)
    return shuffled


def questions(
    latents: Sequence[LatentWindows], found: Sequence[Explanations], shown: int, seed: int
) -> Iterator[Question]:
    """The requests of the second round: every latent's windows in an order of their own, so many in each request."""
    for place, (one, explanations) in enumerate(zip(latents, found, strict=True)):
        for method in METHODS:
            windows, truths = _ordered(one, rng(seed, method, one.hookpoint, one.latent))
            for kind in KINDS:
                explanation = explanations.of(kind)
                for start in range(0, len(windows), shown) if explanation is not None else ():
                    part = slice(start, start + shown)
                    yield Question(place, kind, method, explanation, windows[part], truths[part])


def score(
    judge: Judge, latents: Sequence[LatentWindows], asked: Sequence[Question], unread: Unread, progress: Progress
) -> list[dict[str, dict[Method, Verdicts]]]:
    """Ask all questions; each latent's counts by kind of explanation and method."""
    bodies = [one.body(judge.server.form) for one in asked]
    answers = judge.ask(bodies, progress=progress)
    read = [
        None if answer is None else read_verdicts(answer.text, len(one.windows))
        for one, answer in zip(asked, answers, strict=True)
    ]
    unread.scores += _unread(bodies, answers, read)
    pairs: dict[tuple[int, str, Method], list[tuple[bool, bool | None]]] = {}
    for one, found in zip(asked, read, strict=True):
        verdicts = found or (None,) * len(one.windows)
        pairs.setdefault((one.latent, one.kind, one.method), []).extend(zip(one.truths, verdicts, strict=True))
    return [
        {
            kind: {method: Verdicts.of(*_columns(pairs.get((place, kind, method), []))) for method in METHODS}
            for kind in KINDS
        }
        for place in range(len(latents))
    ]


def _unread(bodies: Sequence[Body], answers: Sequence[Answer | None], read: Sequence[Any]) -> int:
    """How many different requests have an answer that could not be read."""
    triples = zip(bodies, answers, read, strict=True)
    return len({request_digest(body) for body, answer, one in triples if answer is not None and one is None})


def _ordered(one: LatentWindows, random: np.random.Generator) -> tuple[tuple[Window, ...], tuple[bool, ...]]:
    pairs = [*((window, True) for window in one.active), *((window, False) for window in one.inactive)]
    mixed = [pairs[i] for i in random.permutation(len(pairs))]
    return tuple(window for window, _ in mixed), tuple(truth for _, truth in mixed)


def _columns(pairs: Sequence[tuple[bool, bool | None]]) -> tuple[list[bool], list[bool | None]]:
    return [truth for truth, _ in pairs], [verdict for _, verdict in pairs]
