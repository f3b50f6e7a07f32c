"""The summary's numbers, worked out by hand on four layers: one alone, one alone, and a pair."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import LM_MFLOP, NUM_TOKENS, SAE_MFLOP, make_run

from groupsae.partition import Partition
from groupsae.report import SuiteSummary, summarize
from groupsae.report.data import RunData
from groupsae.report.wording import duration, fixed, headline

GROUPS = [["layers.0"], ["layers.1"], ["layers.2", "layers.3"]]


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SuiteSummary]:
    run = make_run(tmp_path_factory.mktemp("runs") / "four", layers=4, groups=GROUPS)
    return {summary.name: summary for summary in summarize(run)}


def test_the_baseline_comes_first(suites):
    assert list(suites) == ["baseline", "groups"]


def test_means_count_each_layer_once(suites):
    assert suites["baseline"].mean_fvu == pytest.approx((0.10 + 0.11 + 0.12 + 0.13) / 4)
    assert suites["groups"].mean_fvu == pytest.approx((0.10 + 0.11 + 0.14 + 0.15) / 4)
    assert suites["groups"].mean_delta_ce == pytest.approx((0.030 + 0.032 + 0.044 + 0.046) / 4)
    assert suites["groups"].mean_kl == pytest.approx(0.9 * (0.030 + 0.032 + 0.044 + 0.046) / 4)
    assert suites["groups"].mean_ce_score == pytest.approx(1 - (0.030 + 0.032 + 0.044 + 0.046) / 4 / 6)
    assert suites["groups"].mean_l0 == pytest.approx((32 + 32 + 31.95 + 31.95) / 4)
    assert suites["groups"].mean_dead_share == pytest.approx((0.01 + 0.01 + 0.02 + 0.02) / 4)


def test_the_worst_layer_is_named(suites):
    assert suites["groups"].worst_layer == "layers.3"
    assert suites["groups"].worst_fvu == pytest.approx(0.15)


def test_cost_is_the_language_model_once_and_one_step_per_sae(suites):
    assert suites["baseline"].mflop_per_token == LM_MFLOP + 4 * SAE_MFLOP
    assert suites["groups"].mflop_per_token == LM_MFLOP + 3 * SAE_MFLOP
    assert suites["groups"].total_pflop == pytest.approx((LM_MFLOP + 3 * SAE_MFLOP) * 1e6 * NUM_TOKENS / 1e15)


def test_seconds_are_those_of_the_suite_trained_alone(suites):
    assert suites["baseline"].seconds == 1000 + 50 + 4 * 100
    assert suites["groups"].seconds == 1000 + 50 + 3 * 100


def test_without_a_partition_there_is_no_suite(tmp_path: Path):
    assert summarize(make_run(tmp_path / "early", layers=4, stages=("tokens", "distances"))) == []


def test_what_is_not_measured_is_none(tmp_path: Path):
    groups = summarize(make_run(tmp_path / "planned", layers=4, stages=("tokens", "distances", "group", "plan")))[1]
    assert groups.mflop_per_token is not None
    unknown = (groups.mean_fvu, groups.worst_layer, groups.mean_delta_ce, groups.total_pflop, groups.seconds)
    assert unknown == (None,) * 5


def test_a_run_without_a_baseline_has_one_suite(tmp_path: Path):
    (only,) = summarize(make_run(tmp_path / "alone", layers=4, baseline=False))
    assert only.name == "groups"
    assert headline([only], 4).startswith("2 SAEs serve 4 layers; mean FVU")


def test_the_headline_compares_with_the_baseline(suites):
    assert headline(list(suites.values()), 4) == (
        "3 SAEs serve 4 layers at 83\u202f% of the baseline’s cost; "
        "mean FVU 0.125 against 0.115, mean ΔCE 0.038 against 0.033\u00a0nats."
    )


def test_the_amad_of_a_division_made_by_hand_is_its_own():
    data = RunData(
        name="hand",
        distances={"hookpoints": ["a.0", "a.1", "a.2"], "matrix": [[0, 0.1, 0.3], [0.1, 0, 0.2], [0.3, 0.2, 0]]},
        plan={
            "candidates": [{"num_groups": 2, "groups": [["a.0", "a.1"], ["a.2"]], "amad": 0.05}],
            "partitions": {"groups": [["a.0", "a.2"], ["a.1"]]},
        },
    )
    assert data.chosen == Partition((("a.0", "a.2"), ("a.1",)))
    assert data.choice["amad"] == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.009, "< 0.1 s"),
        (0.24, "0.2 s"),
        (59, "59 s"),
        (59.97, "1 min"),
        (61, "1 min 1 s"),
        (3599.9, "1 h"),
        (8000, "2 h 13 min"),
    ],
)
def test_a_duration_has_two_units_and_never_sixty_of_one(seconds: float, text: str):
    assert duration(seconds).replace("\u00a0", " ") == text


def test_small_numbers_are_not_rounded_to_nothing():
    assert fixed(0.0000123) == "1.2e−5"
    assert (fixed(0.0), fixed(-0.5), fixed(0.00012), fixed(None)) == ("0.000", "−0.500", "0.00012", "–")
