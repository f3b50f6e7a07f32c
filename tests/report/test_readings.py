"""Equal cost and equal quality, worked out by hand; the table of suites, and what is folded away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import OWN_LM_MFLOP, OWN_SAE_MFLOP, hookpoints, make_run

from groupsae.partition import Partition
from groupsae.report.comparison import compare, read_against, write_comparison
from groupsae.report.data import read_run
from groupsae.report.page import render
from groupsae.report.readings import Point, curve, flops_to, fvu_after, read_curves
from groupsae.report.verdicts import folds, standing

LAW = [Point(flops, flops**-0.5) for flops in (1.0, 4.0, 16.0, 64.0)]
"""FVU is 1 / sqrt(FLOPs)."""


def test_between_logged_points_a_power_law_is_read_exactly():
    assert flops_to(LAW, 1 / 3) == pytest.approx(9)
    assert fvu_after(LAW, 25) == pytest.approx(0.2)


def test_beyond_the_curve_nothing_is_said():
    assert flops_to(LAW, 2.0) is None
    assert flops_to(LAW, 0.01) is None
    assert fvu_after(LAW, 0.5) is None
    assert fvu_after(LAW, 65) is None


def test_a_suite_that_is_twice_as_good_at_every_cost_takes_a_quarter_of_it():
    better = [Point(point.flops, point.fvu / 2) for point in LAW]
    found = read_curves("groups", "baseline", {"groups": better, "baseline": LAW})
    assert found.fvu == pytest.approx(1 / 8)
    assert found.flops_at_fvu == pytest.approx((16, 64))
    assert found.cost_ratio == pytest.approx(0.25)
    assert found.flops == 64
    assert found.fvu_at_flops == pytest.approx((1 / 16, 1 / 8))


def test_curves_that_do_not_meet_give_no_number():
    worse = [Point(flops, 10.0 - flops / 100) for flops in (1.0, 2.0)]
    found = read_curves("groups", "baseline", {"groups": worse, "baseline": LAW})
    assert found.flops_at_fvu[1] is None and found.cost_ratio is None
    assert read_curves("groups", "baseline", {"groups": LAW[:1], "baseline": LAW}) is None


GROUPS = [["layers.0", "layers.1", "layers.2"], ["layers.3"]]


@pytest.fixture
def four(tmp_path: Path):
    return make_run(tmp_path / "four", layers=4, groups=GROUPS, logged=10)


def test_a_curve_counts_each_layer_once_and_stops_where_the_rate_falls(four):
    data = read_run(four)
    for line in data.metrics[7:]:
        for group in line["groups"].values():
            group["learning_rate"] = 1e-4
    found = curve(data, Partition(tuple(map(tuple, GROUPS))), 10.0)
    assert len(found) == 7
    line = data.metrics[6]
    expected = (3 * line["groups"]["layers.0-2"]["fvu"] + line["groups"]["layers.3"]["fvu"]) / 4
    assert found[-1] == Point(line["tokens"] * 10.0, pytest.approx(expected))


def test_a_comparison_is_priced_by_our_own_count(four):
    (found,) = compare(read_run(four)).readings
    assert (found.one, found.other) == ("groups", "baseline")
    tokens = found.flops / (OWN_LM_MFLOP + 2 * OWN_SAE_MFLOP) / 1e6
    assert tokens == pytest.approx(2_000_000)


def test_the_summary_holds_every_suites_cost_and_quality(four):
    assert write_comparison(four) == "eval/summary.json"
    record = json.loads(four.file("eval/summary.json").read_text())
    groups = record["suites"]["groups"]
    assert groups["own_mflop_per_token"] == OWN_LM_MFLOP + 2 * OWN_SAE_MFLOP
    assert groups["memory_bytes"] == 520 * 2**20
    assert groups["all_layers_delta_ce"] == 0.7
    assert groups["intervals"]["all_layers_delta_ce"] == [0.6, 0.8]
    assert {"num_tokens", "seconds", "total_pflop", "mean_fvu"} < set(groups)
    assert record["readings"][0]["one"] == "groups"


def test_a_comparison_with_another_run_is_read_back_as_it_was_written(four):
    record = compare(read_run(four)).as_record() | {"against": "other"}
    four.write_json("eval/against/other/summary.json", record)
    (found,) = read_against(four)
    assert found.label == "other"
    assert found.readings == compare(read_run(four)).readings
    assert [one.mean_fvu for one in found.summaries] == [one.mean_fvu for one in compare(read_run(four)).summaries]
    assert "Beside the suites of other" in render(four)


def test_before_training_there_is_no_cost_beside_quality(tmp_path: Path):
    assert standing(read_run(make_run(tmp_path / "planned", layers=4, stages=("tokens", "distances", "plan")))) is None


def test_without_a_log_the_page_says_that_curves_do_not_meet(four):
    assert standing(replace(read_run(four), metrics=[])).sentences == ()


def test_the_fold_of_groups_has_a_row_per_group_with_mean_and_worst(four):
    groups = folds(read_run(four))[0].tables[0]
    assert [name for name, _ in groups.columns][:4] == ["group", "layers", "fvu_mean", "fvu_worst"]
    assert [cell.value for cell in groups.rows[0]][:4] == [0, 3, pytest.approx(0.15), pytest.approx(0.16)]


def test_an_evaluation_of_an_older_version_is_shown_without_what_it_lacks(tmp_path: Path):
    run = make_run(tmp_path / "old", names=hookpoints(4))
    for name in ("eval/reconstruction.json", "eval/losses.json"):
        record = run.read_json(name)
        run.write_json(name, {key: record[key] for key in ("num_tokens", "suites")})
    assert "Every layer" in render(run)
    assert [fold.title for fold in folds(read_run(run))] == ["Further measures of every layer"]
