"""Explanations and scores end to end against the rule-based judge: right for what it understands, 0.5 for floors."""

import json

import numpy as np
import pytest
from rule_judge import completion, rule, word_latents

from groupsae.interpretability.judge.cost import CHARACTERS_PER_TOKEN, Prices, estimate_cost
from groupsae.interpretability.judge.prompts import METHODS, RequestForm
from groupsae.interpretability.judge.rounds import (
    KINDS,
    Explanations,
    Unread,
    explain,
    explanation_bodies,
    questions,
    score,
    shuffle,
)
from groupsae.interpretability.judge.scores import mean_accuracy
from groupsae.interpretability.judge.settings import Sampling

FORM = RequestForm("m")
EXPLANATIONS = Explanations("mine", "of nothing")


def judged(judge, latents, shown=5):
    """Explanations, counts and unread answers of both rounds."""
    unread = Unread()
    found = shuffle(latents, explain(judge, latents, unread, lambda done: None), seed=0)
    asked = list(questions(latents, found, shown, seed=0))
    return found, score(judge, latents, asked, unread, lambda done: None), unread


def mean(counts, kind, method):
    return mean_accuracy([one[kind][method] for one in counts])


def test_true_explanations_score_one_and_others_half(client):
    latents = word_latents(6)
    found, counts, unread = judged(client(), latents)
    assert [one.own for one in found] == [f'the token " word{number:03}"' for number in range(6)]
    assert all(one.shuffled != one.own and one.shuffled_from != n for n, one in enumerate(found))
    for method in METHODS:
        true = mean(counts, "own", method)
        assert true.mean == 1.0 and true.latents == 6 and true.windows == 120
        assert mean(counts, "shuffled", method).mean == 0.5
        assert abs(mean(counts, "random", method).mean - 0.5) < 0.1
    assert unread == Unread()


def test_each_score_is_of_ten_windows_of_each_kind(client):
    _, counts, _ = judged(client(), word_latents(2))
    for one in counts:
        assert {kind: list(methods) for kind, methods in one.items()} == {kind: list(METHODS) for kind in KINDS}
        assert all((v.active, v.inactive) == (10, 10) for methods in one.values() for v in methods.values())


def test_a_judge_that_guesses_scores_half_within_the_interval(client, rules):
    guess = np.random.default_rng(0)

    def reply(number, body):
        text = rule(body)
        return 200, completion(str(guess.integers(0, 2, len(json.loads(text))).tolist()) if text[0] == "[" else text)

    rules.reply = reply
    _, counts, _ = judged(client(concurrent=1), word_latents(12))
    for method in METHODS:
        low, high = mean(counts, "own", method).interval
        assert low < 0.5 < high and high - low < 0.25


def test_windows_are_mixed_and_what_is_asked_does_not_say_which_activate():
    latents = word_latents(4)
    asked = list(questions(latents, shuffle(latents, [EXPLANATIONS] * 4, seed=0), 5, seed=0))
    assert len(asked) == 4 * len(KINDS) * len(METHODS) * 4
    assert len({one.truths for one in asked}) > 8
    for one in asked:
        text = one.body(FORM)["messages"][1]["content"]
        assert ("<<" in text) == (one.method == "fuzzing")
        if one.method == "fuzzing":  # every window has as many marks, whether it activates or not
            assert [line.count("<<") for line in text.splitlines()[2:7]] == [1] * 5


def test_the_same_questions_are_asked_again_by_the_same_seed_and_others_by_another():
    latents = word_latents(2)
    found = [EXPLANATIONS, EXPLANATIONS]
    bodies = [[one.body(FORM) for one in questions(latents, found, 5, seed)] for seed in (0, 0, 1)]
    assert bodies[0] == bodies[1] != bodies[2]


def test_a_lone_latent_has_no_shuffled_explanation(client):
    found, counts, _ = judged(client(), word_latents(1))
    assert found[0].shuffled is None and found[0].own is not None
    assert counts[0]["shuffled"]["detection"].balanced_accuracy is None


def test_answers_that_cannot_be_read_are_counted_and_left_out(client, rules):
    def reply(number, body):
        text = rule(body)
        prose = "Sure! Windows 1 and 3 fit well." if text[0] == "[" else "\n\n"
        return 200, completion(prose if number % 3 == 0 else text)

    rules.reply = reply
    latents = word_latents(5)
    found, counts, unread = judged(client(concurrent=1), latents)
    assert unread.explanations > 0 and unread.scores > 0
    assert sum(one.own is None for one in found) + sum(one.random is None for one in found) == unread.explanations
    judged_windows = sum(v.active + v.inactive for one in counts for kind in one.values() for v in kind.values())
    asked = len(rules.bodies) - len(explanation_bodies(FORM, latents))
    assert judged_windows == 5 * (asked - unread.scores)
    assert mean(counts, "own", "detection").mean == 1.0


def test_the_estimate_counts_the_requests_that_are_sent(client, rules, cache):
    latents, sampling = word_latents(3), Sampling()
    judge = client()
    before = estimate_cost(judge.server, latents, sampling, cache, Prices(1.0, 2.0))
    assert (before.explanations, before.scores, before.cached) == (6, 3 * 3 * 2 * 4, 0)
    assert not before.seconds_measured and before.dollars > 0
    judged(judge, latents)
    assert len(rules.bodies) == before.requests
    sent = sum(len(m["content"]) for body in rules.bodies for m in body["messages"]) / CHARACTERS_PER_TOKEN
    assert before.prompt_tokens == pytest.approx(sent, rel=0.15)
    after = estimate_cost(judge.server, latents, sampling, cache, Prices())
    assert (after.requests, after.cached, after.prompt_tokens, after.dollars) == (0, before.requests, 0, None)
    assert after.seconds_measured and after.seconds == 0


def test_nothing_is_asked_twice(client, rules):
    first = judged(client(), word_latents(3))
    sent = len(rules.bodies)
    again = client()
    assert judged(again, word_latents(3)) == first
    assert len(rules.bodies) == sent and again.tally.answered == 0 and again.tally.cached == sent
