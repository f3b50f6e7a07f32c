"""Balanced accuracy, Wilson's intervals, and which latents and windows are drawn."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from groupsae.interpretability.judge.sampling import draw_latents, match_latents, one_per_quantile, rng
from groupsae.interpretability.judge.scores import Verdicts, mean_accuracy, wilson


@pytest.mark.parametrize(("right", "of"), [(0, 20), (7, 20), (10, 20), (20, 20), (500, 960)])
def test_wilson_agrees_with_scipy(right, of):
    found = binomtest(right, of).proportion_ci(method="wilson")
    assert wilson(right / of, of) == pytest.approx((found.low, found.high), abs=1e-12)


def test_balanced_accuracy_counts_both_kinds_alike():
    one = Verdicts.of([True] * 3 + [False] * 3, [True, False, None, False, False, None])
    assert one == Verdicts(active=2, right_active=1, inactive=2, right_inactive=2)
    assert one.balanced_accuracy == 0.75
    assert one.interval == pytest.approx(binomtest(3, 4).proportion_ci(method="wilson"))
    assert Verdicts(100, 100, 1, 0).balanced_accuracy == 0.5 and Verdicts(100, 100, 1, 0).size < 4


@pytest.mark.parametrize("verdicts", [Verdicts(), Verdicts(active=5, right_active=5), Verdicts(inactive=3)])
def test_one_kind_alone_has_no_balanced_accuracy(verdicts):
    assert verdicts.balanced_accuracy is None and verdicts.interval is None
    assert mean_accuracy([verdicts]).mean is None and mean_accuracy([verdicts]).interval is None


def test_the_interval_of_a_mean_widens_where_latents_differ():
    alike = [Verdicts(10, 7, 10, 7)] * 20
    differ = [Verdicts(10, 10, 10, 10)] * 8 + [Verdicts(10, 5, 10, 5)] * 12
    one, other = mean_accuracy(alike), mean_accuracy(differ)
    assert one.mean == pytest.approx(other.mean) == pytest.approx(0.7) and one.windows == other.windows == 400
    assert one.interval == pytest.approx(binomtest(280, 400).proportion_ci(method="wilson"))
    assert other.interval[1] - other.interval[0] > 1.5 * (one.interval[1] - one.interval[0])


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_the_interval_of_a_mean_covers_the_truth(spread):
    random, covered, trials, truth = np.random.default_rng(0), 0, 400, 0.7
    for _ in range(trials):
        shares = np.clip(random.choice([truth - spread, truth + spread], 30), 0, 1)
        scores = [Verdicts(10, int(random.binomial(10, p)), 10, int(random.binomial(10, p))) for p in shares]
        low, high = mean_accuracy(scores).interval
        covered += low <= truth <= high
    assert 0.92 <= covered / trials <= 0.985


counts = st.integers(0, 12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # for busy machines
@given(st.lists(st.builds(lambda a, b, c, d: Verdicts(a + b, a, c + d, c), counts, counts, counts, counts), max_size=8))
def test_means_lie_in_their_interval_and_in_the_range(scores):
    found = mean_accuracy(scores)
    if found.mean is not None:
        low, high = found.interval
        assert 0 <= low <= found.mean + 1e-12 and found.mean - 1e-12 <= high <= 1


# ---- which latents and windows


def test_latents_are_drawn_by_seed_among_those_that_can_be_judged():
    eligible = np.arange(100) % 3 == 0
    draws = [draw_latents(eligible, 10, rng(seed, "latents")) for seed in (0, 0, 1)]
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
    assert all(len(set(draw)) == 10 and eligible[draw].all() for draw in draws)
    assert draw_latents(eligible, 1000, rng(0, "all")).tolist() == np.flatnonzero(eligible).tolist()


def test_every_eligible_latent_is_drawn_equally_often():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[draw_latents(np.arange(20) >= 10, 2, rng(seed, "x"))] += 1
    assert (counts[:10] == 0).all() and abs(counts[10:] - 400).max() < 100


def test_matched_latents_fire_as_often():
    random = np.random.default_rng(0)
    rates, others = np.exp(random.uniform(-8, -2, 30)), np.exp(random.uniform(-8, -2, 2000))
    eligible = random.random(2000) < 0.5
    found = match_latents(rates, others, eligible, rng(0, "match"))
    assert len(set(found)) == 30 and eligible[found].all()
    assert abs(np.log(rates) - np.log(others[found])).max() < 0.1


def test_equal_rates_are_matched_at_random():
    found = {tuple(match_latents(np.full(2, 0.1), np.full(50, 0.1), np.full(50, True), rng(s, "m"))) for s in range(20)}
    assert len(found) > 10


def test_where_few_are_eligible_some_have_no_match():
    eligible = np.arange(5) == 3
    assert sorted(match_latents(np.array([0.1, 0.2]), np.full(5, 0.2), eligible, rng(0, "m"))) == [-1, 3]
    assert match_latents(np.zeros(0), np.full(5, 0.2), eligible, rng(0, "m")).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.1, 9), min_size=10, max_size=60), st.integers(0, 5))
def test_one_window_of_each_quantile(peaks, seed):
    found = one_per_quantile(np.array(peaks), 10, rng(seed, "q"))
    assert len(set(found.tolist())) == 10
    shown = np.array(peaks)[found]
    assert (np.diff(shown) >= 0).all()
    assert shown[0] <= np.quantile(peaks, 0.2, method="higher") and shown[-1] >= np.quantile(peaks, 0.8, method="lower")
