"""What asking will take, before anything is sent: requests, tokens, time and money."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groupsae.interpretability.judge.answers import read_explanation
from groupsae.interpretability.judge.cache import AnswerCache, request_digest
from groupsae.interpretability.judge.rounds import Explanations, explanation_bodies, questions, shuffle
from groupsae.interpretability.judge.sampling import LatentWindows
from groupsae.interpretability.judge.settings import JudgeServer, Sampling

CHARACTERS_PER_TOKEN = 2.8
"""A request about Python code has 2.9 with SmolLM2's tokenizer, English has more: the estimate is rather too high."""
EXPLANATION_ANSWER, VERDICT_ANSWER = 60, 3
"""Tokens of an explanation, and of the verdict on one window."""
THOUGHTS = 500
"""Tokens of thoughts before an answer, where the model thinks: a guess."""
UNKNOWN_LENGTH = 160
"""Characters of an explanation that has not been asked for."""
ASSUMED_SECONDS = 2.0
"""Seconds of one request, where the cache holds no answer of this model."""

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass(frozen=True)
class CostEstimate:
    """Requests that are still to be sent, and what they take. Tokens are reckoned from length."""

    explanations: int
    scores: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    seconds_measured: bool
    dollars: float | None

    @property
    def requests(self) -> int:
        """All of them."""
        return self.explanations + self.scores


def estimate_cost(
    server: JudgeServer, latents: Sequence[LatentWindows], sampling: Sampling, cache: AnswerCache, prices: Prices
) -> CostEstimate:
    """What judging these latents will take beyond the answers that are there already."""
    first = explanation_bodies(server.form, latents)
    known = [_known(cache, number, body) for number, body in enumerate(first)]
    found = [Explanations(own, other) for own, other in zip(known[::2], known[1::2], strict=True)]
    asked = list(questions(latents, shuffle(latents, found, sampling.seed), sampling.shown, sampling.seed))
    second = [one.body(server.form) for one in asked]
    ahead = [
        (_unanswered(first, cache), EXPLANATION_ANSWER),
        (_unanswered(second, cache), VERDICT_ANSWER * sampling.shown),
    ]
    (explaining, _), (scoring, _) = ahead
    prompt = sum(_tokens(body) for bodies, _ in ahead for body in bodies)
    completion = sum(len(bodies) * (tokens + THOUGHTS * server.thinks) for bodies, tokens in ahead)
    measured = cache.median_seconds(server.model)
    rounds = math.ceil((len(explaining) + len(scoring)) / server.concurrent)
    priced = prices.prompt or prices.completion
    return CostEstimate(
        explanations=len(explaining),
        scores=len(scoring),
        cached=len({request_digest(body) for body in (*first, *second)}) - len(explaining) - len(scoring),
        prompt_tokens=prompt,
        completion_tokens=completion,
        seconds=rounds * (measured or ASSUMED_SECONDS),
        seconds_measured=measured is not None,
        dollars=(prompt * prices.prompt + completion * prices.completion) / 1e6 if priced else None,
    )


def _known(cache: AnswerCache, number: int, body: Body) -> str | None:
    """The explanation in the cache; a stand-in where it has not been asked for, None where it cannot be read."""
    answer = cache.get(body)
    return f"{number:->{UNKNOWN_LENGTH}}" if answer is None else read_explanation(answer.text)


def _unanswered(bodies: Iterable[Body], cache: AnswerCache) -> list[Body]:
    different = {request_digest(body): body for body in bodies}
    return [body for body in different.values() if cache.get(body) is None]


def _tokens(body: Body) -> int:
    return math.ceil(sum(len(message["content"]) for message in body["messages"]) / CHARACTERS_PER_TOKEN)
