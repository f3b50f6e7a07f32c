"""Latents, explanations and verdicts as a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from groupsae.interpretability.judge.client import Tally
from groupsae.interpretability.judge.prompts import METHODS, Method
from groupsae.interpretability.judge.rounds import KINDS, Explanations, Unread
from groupsae.interpretability.judge.sampling import Gathered
from groupsae.interpretability.judge.scores import Verdicts, mean_accuracy
from groupsae.interpretability.judge.settings import JudgeServer, Sampling
from groupsae.metrics import INTERPRETATION, units
from groupsae.records.types.interpretation import (
    InterpretationRecord,
    JudgedLatentRecord,
    JudgeRecord,
    MeanAccuracyRecord,
    SamplingRecord,
    VerdictsRecord,
)

Counts = Mapping[str, Mapping[Method, Verdicts]]
Means = dict[str, dict[str, MeanAccuracyRecord]]


def interpretation_record(
    server: JudgeServer,
    sampling: Sampling,
    gathered: Gathered,
    explanations: Sequence[Explanations],
    counts: Sequence[Counts],
    tally: Tally,
    unread: Unread,
    layers: Mapping[str, Sequence[str]],
) -> InterpretationRecord:
    """The record of what was judged. `layers` are each suite's; one without a latent to judge stays empty."""
    at: dict[str, dict[str, list[int]]] = {suite: {name: [] for name in names} for suite, names in layers.items()}
    for place, one in enumerate(gathered.latents):
        at[one.suite][one.hookpoint].append(place)
    return InterpretationRecord(
        units=units(INTERPRETATION),
        num_tokens=gathered.num_tokens,
        sampling=SamplingRecord(**asdict(sampling)),
        judge=_judge(server, tally, unread),
        complete=tally.complete,
        suites={
            suite: {
                hookpoint: tuple(_latent(gathered, place, explanations[place], counts[place]) for place in found)
                for hookpoint, found in served.items()
            }
            for suite, served in at.items()
        },
        layers={
            suite: {hookpoint: _means(counts[place] for place in found) for hookpoint, found in served.items()}
            for suite, served in at.items()
        },
        over_layers={
            suite: _means(counts[place] for found in served.values() for place in found) for suite, served in at.items()
        },
    )


def _judge(server: JudgeServer, tally: Tally, unread: Unread) -> JudgeRecord:
    return JudgeRecord(
        url=server.url,
        model=server.model,
        thinks=server.thinks,
        requests=tally.cached + tally.answered + tally.lost.total(),
        cached=tally.cached,
        answered=tally.answered,
        lost=dict(tally.lost),
        faults=dict(tally.faults),
        said=tally.said,
        unread_explanations=unread.explanations,
        unread_scores=unread.scores,
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        seconds=round(tally.seconds, 3),
        verdict=tally.verdict,
    )


def _latent(gathered: Gathered, place: int, found: Explanations, counts: Counts) -> JudgedLatentRecord:
    one = gathered.latents[place]
    return JudgedLatentRecord(
        latent=one.latent,
        firing_rate=one.firing_rate,
        explanation=found.own,
        random_explanation=found.random,
        shuffled_from=found.shuffled_from,
        scores={
            kind: {method: _verdicts(verdicts) for method, verdicts in methods.items()}
            for kind, methods in counts.items()
        },
    )


def _verdicts(one: Verdicts) -> VerdictsRecord:
    return VerdictsRecord(**asdict(one), balanced_accuracy=one.balanced_accuracy, interval=one.interval)


def _means(counts: Iterable[Counts]) -> Means:
    found = list(counts)
    return {
        kind: {
            method: MeanAccuracyRecord(**asdict(mean_accuracy([one[kind][method] for one in found])))
            for method in METHODS
        }
        for kind in KINDS
    }
