"""Intervals of ratios of sums: known cases, coverage, and what follows for means and differences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_cases import random_suite
from scipy import stats

from groupsae.activations.source import SyntheticSource, row_clusters
from groupsae.evaluation.aggregate import by_group, differences, over_layers
from groupsae.evaluation.intervals import RowEstimate, difference, mean, ratio
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.metrics import RECONSTRUCTION
from groupsae.text.tokens import TokenRows

GROUPS = (("layers.0", "layers.2"), ("layers.1",))


def test_over_rows_of_equal_length_it_is_students_interval_of_the_mean():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = ratio(5 * values, np.full(4, 5.0))
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert found.value == 4.0
    assert found.interval == pytest.approx(expected)


def test_a_ratio_that_is_the_same_in_every_row_is_certain():
    bottom = np.array([1.0, 5.0, 2.0])
    assert ratio(3 * bottom, bottom).interval == pytest.approx((3, 3))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    held, trials, truth = 0, 800, 0.3
    for _ in range(trials):
        bottom = random.gamma(4, 1, 60)
        top = truth * bottom + random.normal(0, 0.4, 60) * bottom
        low, high = ratio(top, bottom).interval
        held += low <= truth <= high
    assert held / trials == pytest.approx(0.95, abs=0.025)


def test_one_row_has_no_interval():
    assert ratio(np.ones(1), np.ones(1)) == RowEstimate(1.0, np.zeros(1))
    assert ratio(np.ones(1), np.ones(1)).interval is None


@pytest.mark.parametrize("bottom", [0.0, -1.0])
def test_a_ratio_to_nothing_is_undefined(bottom):
    assert ratio(np.ones(2), np.array([bottom, 0.0])).value is None
    assert ratio(np.ones(2), np.array([bottom, 0.0])).interval is None


def test_nothing_to_nothing_may_have_a_stated_value():
    assert ratio(np.zeros(2), np.zeros(2)).value is None
    assert ratio(np.zeros(2), np.zeros(2), empty=0.0).value == 0.0


def test_a_difference_is_judged_row_by_row():
    random = np.random.default_rng(1)
    bottom, common = np.ones(50), random.normal(0, 10, 50)
    one, other = (ratio(common + shift, bottom) for shift in (1.0, 0.0))
    assert difference(one, other).interval == pytest.approx((1, 1))
    assert one.interval[0] < other.interval[1], "each alone is far less certain"


def test_a_mean_of_the_same_ratio_twice_is_no_more_certain():
    one = ratio(np.array([1.0, 3.0, 2.0]), np.ones(3))
    assert mean([one, one]).interval == pytest.approx(one.interval)


def test_what_is_undefined_is_left_out_of_a_mean():
    one, none = ratio(np.array([1.0, 3.0]), np.ones(2)), ratio(np.ones(2), np.zeros(2))
    assert mean([one, none]) == RowEstimate(2.0, np.zeros(2))
    assert mean([none]).value is None


@pytest.fixture(scope="module")
def compared():
    suites = {"one": random_suite(groups=GROUPS), "other": random_suite(groups=GROUPS, seed=9, k=6)}
    source = SyntheticSource(num_layers=3, d_model=16, num_rows=20, row_tokens=9)
    return suites, evaluate_reconstructions(suites, source, 10**6).suites


def test_over_layers_are_mean_and_worst(compared):
    _, found = compared
    fvu = {hookpoint: one.fvu for hookpoint, one in found["one"].items()}
    row = over_layers(found["one"], RECONSTRUCTION)["fvu"]
    assert row["mean"] == pytest.approx(sum(fvu.values()) / 3)
    assert (row["worst"], row["worst_layer"]) == max((value, name) for name, value in fvu.items())
    assert row["interval"][0] < row["mean"] < row["interval"][1]
    assert over_layers(found["one"], RECONSTRUCTION)["cosine"]["worst"] == min(
        one.cosine for one in found["one"].values()
    )
    assert "worst" not in over_layers(found["one"], RECONSTRUCTION)["l0"]


def test_a_group_of_one_has_its_layers_own_numbers(compared):
    suites, found = compared
    row, one = by_group(suites["one"], found["one"], RECONSTRUCTION)["layers.1"]["fvu"], found["one"]["layers.1"]
    assert (row["mean"], row["worst"], row["worst_layer"]) == (pytest.approx(one.fvu), one.fvu, "layers.1")
    assert row["interval"] == pytest.approx(one.intervals["fvu"])


def test_differences_are_those_of_the_means(compared):
    _, found = compared
    change = differences(found["other"], found["one"], RECONSTRUCTION)["fvu"]
    means = [over_layers(found[name], RECONSTRUCTION)["fvu"]["mean"] for name in ("other", "one")]
    assert change["mean"] == pytest.approx(means[0] - means[1])
    same = differences(found["one"], found["one"], RECONSTRUCTION)["fvu"]
    assert same["mean"] == 0 and same["interval"] == (0, 0)


def test_intervals_by_document_hold_the_value_where_those_by_row_do_not():
    """Documents of 16 alike rows: a nominal 95 % interval must hold the true mean about as often."""
    random, trials, held = np.random.default_rng(0), 400, {"row": 0, "document": 0}
    clusters_R = np.repeat(np.arange(20), 16)
    for _ in range(trials):
        top_R = 1 + np.repeat(random.normal(size=20), 16) + 0.5 * random.normal(size=320)
        by_row = ratio(top_R, np.ones(320))
        for name, one in (("row", by_row), ("document", by_row.clustered(clusters_R))):
            low, high = one.interval
            held[name] += low <= 1 <= high
    assert held["row"] / trials < 0.6
    assert 0.92 < held["document"] / trials < 0.98


def test_rows_of_one_document_are_one_cluster_of_an_evaluation():
    ids_RT = np.arange(24 * 8).reshape(24, 8).astype(np.uint16) % 60
    alone = TokenRows(ids_RT)
    rows = TokenRows(ids_RT, document_starts=np.array([0, 64, 128]))  # three documents of eight rows
    chosen = torch.arange(24)
    source = lambda text: SimpleNamespace(documents=lambda some: torch.from_numpy(text.document_of_row())[some])  # noqa: E731
    numbered = row_clusters(source(rows), chosen)
    assert numbered.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert row_clusters(source(alone), chosen).tolist() == list(range(24))
    assert row_clusters(SyntheticSource(), chosen).tolist() == list(range(24))
