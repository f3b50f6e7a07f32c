"""Means and intervals of scores over latents, and suites at equal firing rates."""

import numpy as np

from groupsae.interpretability.agreement import agreement
from groupsae.interpretability.summary import Scores, summarize_scores
from groupsae.metrics import INTERPRETABILITY


def scores(count_S, value_S):
    return Scores(np.asarray(count_S), {name: np.asarray(value_S, dtype=float) for name in INTERPRETABILITY})


def test_the_interval_is_that_of_a_mean_of_latents():
    value_S = np.random.default_rng(0).random(200)
    value_S[:20] = np.nan
    found = summarize_scores({"baseline": {"layers.0": (0, scores(np.ones(200, int), value_S))}}, "baseline")
    row = found.suites["baseline"]["layers.0"]["intruder"]
    known = value_S[20:]
    half = 1.9733 * known.std(ddof=1) / np.sqrt(180)  # t of 179 degrees of freedom
    assert row["scored"] == 180 and np.isclose(row["mean"], known.mean())
    assert np.allclose(row["interval"], (known.mean() - half, known.mean() + half), atol=1e-4)


def test_a_latent_at_several_layers_is_one_unit():
    value_S = np.random.default_rng(0).random(100)
    one = {"layers.0": (0, scores(np.ones(100, int), value_S))}
    twice = one | {"layers.1": one["layers.0"]}
    apart = one | {"layers.1": (1, one["layers.0"][1])}

    def width(layers):
        low, high = summarize_scores({"s": layers}, "s").layers["s"]["intruder"]["interval"]
        return high - low

    assert np.isclose(width(twice), width(one))
    assert 0.68 < width(apart) / width(one) < 0.72


def test_equal_firing_rates_remove_a_difference_that_rates_explain():
    random = np.random.default_rng(0)
    rare, frequent = random.integers(1, 50, 400), random.integers(100, 500, 400)

    def suite(share):
        count_S = np.where(random.random(400) < share, rare, frequent)
        return {"layers.0": (int(100 * share), scores(count_S, (count_S < 60) + 0.01 * random.random(400)))}

    found = summarize_scores({"baseline": suite(0.75), "groups": suite(0.25)}, "baseline")
    plain = found.differences["groups"]["intruder"]
    even = found.matched_differences["groups"]["intruder"]
    assert plain["mean"] < -0.3 and plain["interval"][1] < 0
    assert abs(even["mean"]) < 0.05


def test_nothing_scored():
    found = summarize_scores({"s": {"layers.0": (0, scores([0, 0], [np.nan, np.nan]))}}, "s")
    assert found.suites["s"]["layers.0"]["intruder"] == {"mean": None, "interval": None, "scored": 0}
    assert found.layers["s"]["intruder"]["mean"] is None


def test_agreement_with_a_judge_is_a_rank_correlation():
    value_S = np.random.default_rng(0).random(40)
    found = {"groups": {"layers.0": (0, scores(np.ones(40, int), value_S))}}
    judged = {latent: {"text": "x", "detection": float(value_S[latent] ** 3), "fuzzing": 0.5} for latent in range(30)}
    judged[31] = {"text": "x"}
    rows = agreement(found, {("groups", "layers.0"): judged, ("others", "layers.9"): judged})
    assert np.isclose(rows["detection"]["intruder"]["spearman"], 1) and rows["detection"]["intruder"]["latents"] == 30
    assert rows["fuzzing"]["intruder"] == {"spearman": None, "latents": 30}
    assert agreement(found, {}) == {} and agreement(found, {("groups", "layers.0"): {1: judged[1]}}) == {}
