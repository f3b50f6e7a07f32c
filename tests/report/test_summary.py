"""The summary's numbers, worked out by hand on four layers: one alone, one alone, and a pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_builder import LM_MFLOP, NUM_TOKENS, SAE_MFLOP, make_run, records_of

from groupsae.analysis.candidates import view_plan
from groupsae.analysis.run_records import RunRecords
from groupsae.analysis.summary import summarize as summarize_records
from groupsae.metrics import fixed
from groupsae.partition import Partition
from groupsae.records import RunDirectory
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.distances import DistancesRecord
from groupsae.records.types.summary import SuiteSummary
from groupsae.report.wording import headline
from groupsae.units import format_bytes, format_duration

GROUPS = [["layers.0"], ["layers.1"], ["layers.2", "layers.3"]]


def summarize(run: RunDirectory) -> list[SuiteSummary]:
    return list(summarize_records(RunRecords.read(run)))


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
    assert suites["baseline"].published_mflop == LM_MFLOP + 4 * SAE_MFLOP
    assert suites["groups"].published_mflop == LM_MFLOP + 3 * SAE_MFLOP
    assert suites["groups"].published_pflop == pytest.approx((LM_MFLOP + 3 * SAE_MFLOP) * 1e6 * NUM_TOKENS / 1e15)


def test_seconds_are_those_of_the_suite_trained_alone(suites):
    assert suites["baseline"].seconds == 1000 + 50 + 4 * 100
    assert suites["groups"].seconds == 1000 + 50 + 3 * 100


def test_without_a_partition_there_is_no_suite(tmp_path: Path):
    assert summarize(make_run(tmp_path / "early", layers=4, stages=("tokens", "distances"))) == []


def test_what_is_not_measured_is_none(tmp_path: Path):
    groups = summarize(make_run(tmp_path / "planned", layers=4, stages=("tokens", "distances", "group", "plan")))[1]
    assert groups.published_mflop is not None
    unknown = (groups.mean_fvu, groups.worst_layer, groups.mean_delta_ce, groups.published_pflop, groups.seconds)
    assert unknown == (None,) * 5


def test_a_run_without_a_baseline_has_one_suite(tmp_path: Path):
    (only,) = summarize(make_run(tmp_path / "alone", layers=4, baseline=False))
    assert only.name == "groups"
    assert headline([only], 4).startswith("2 SAEs serve 4 layers; mean FVU")


def test_the_headline_compares_with_the_baseline(suites):
    assert headline(list(suites.values()), 4) == (
        "3 SAEs serve 4 layers at 83\u202f% of the baseline’s FLOPs; "
        "mean FVU 0.125 against 0.115, mean ΔCE 0.038 against 0.033\u00a0nats at equal tokens per SAE."
    )


def test_the_amad_of_a_partition_made_by_hand_is_its_own():
    found = Candidate(method="complete", groups=(("a.0", "a.1"), ("a.2",)), amad=0.05)
    by_hand = (("a.0", "a.2"), ("a.1",))
    matrix = ((0, 0.1, 0.3), (0.1, 0, 0.2), (0.3, 0.2, 0))
    distances = DistancesRecord(
        metric="angular", hookpoints=("a.0", "a.1", "a.2"), matrix=matrix, standard_error=matrix, num_tokens=10
    )
    plan = {"method": "complete", "candidates": {"complete": (found,)}, "choice": found}
    records = replace(records_of(**plan, suites={"groups": by_hand}), distances=distances)
    assert records.chosen == Partition(by_hand)
    assert view_plan(records).choice.amad == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.24, "0 s"), (59, "59 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")],
)
def test_a_duration_has_one_unit(seconds: float | None, text: str):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 B"), (1536, "2 KiB"), (587_282_944, "560 MiB"), (2**31, "2.0 GiB"), (2**41, "2048.0 GiB")],
)
def test_a_size_has_a_unit_that_suits_it(value: float | None, text: str):
    assert format_bytes(value) == text


def test_small_numbers_are_not_rounded_to_nothing():
    assert fixed(0.0000123) == "1.2e−5"
    assert (fixed(0.0), fixed(-0.5), fixed(0.00012), fixed(None)) == ("0.000", "−0.500", "0.00012", "-")
