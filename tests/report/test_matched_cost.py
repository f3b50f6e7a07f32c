"""Equal cost and equal quality, worked out by hand; the table of suites, and the tables that are folded away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from run_builder import OWN_LM_MFLOP, OWN_SAE_MFLOP, as_groups, make_run

from groupsae.analysis.frames import matched_sentence, suite_frame
from groupsae.analysis.matched_cost import Point, curve, flops_to, fvu_after, match
from groupsae.analysis.run_records import RunRecords
from groupsae.analysis.summary import compare, read_against, write_summary
from groupsae.partition import Partition
from groupsae.report.page import render
from groupsae.report.tables import group_frame

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
    found = match("groups", "baseline", {"groups": better, "baseline": LAW})
    assert found.fvu == pytest.approx(1 / 8)
    assert found.flops_at_fvu == pytest.approx((16, 64))
    assert found.cost_ratio == pytest.approx(0.25)
    assert found.flops == 64
    assert found.fvu_at_flops == pytest.approx((1 / 16, 1 / 8))


def test_curves_that_do_not_meet_give_no_number():
    worse = [Point(flops, 10.0 - flops / 100) for flops in (1.0, 2.0)]
    found = match("groups", "baseline", {"groups": worse, "baseline": LAW})
    assert found.flops_at_fvu[1] is None and found.cost_ratio is None
    assert match("groups", "baseline", {"groups": LAW[:1], "baseline": LAW}) is None


GROUPS = [["layers.0", "layers.1", "layers.2"], ["layers.3"]]


@pytest.fixture
def four(tmp_path: Path):
    return make_run(tmp_path / "four", layers=4, groups=GROUPS, logged=10)


def test_a_curve_counts_each_layer_once_and_stops_where_the_rate_falls(four):
    log = RunRecords.read(four).log
    slow = [
        line.model_copy(
            update={"groups": {k: v.model_copy(update={"learning_rate": 1e-4}) for k, v in line.groups.items()}}
        )
        for line in log[7:]
    ]
    found = curve([*log[:7], *slow], Partition(as_groups(GROUPS)), 10.0)
    assert len(found) == 7
    line = log[6]
    expected = (3 * line.groups["layers.0-2"].fvu + line.groups["layers.3"].fvu) / 4
    assert found[-1] == Point(line.tokens * 10.0, pytest.approx(expected))


def test_suites_are_compared_by_our_own_count(four):
    (found,) = compare(RunRecords.read(four)).matched_cost
    assert (found.one, found.other) == ("groups", "baseline")
    tokens = found.flops / (OWN_LM_MFLOP + 2 * OWN_SAE_MFLOP) / 1e6
    assert tokens == pytest.approx(2_000_000)


def test_the_summary_holds_every_suites_cost_and_quality(four):
    assert write_summary(four) == "eval/summary.json"
    record = json.loads(four.file("eval/summary.json").read_text())
    groups = record["suites"]["groups"]
    assert groups["own_mflop"] == OWN_LM_MFLOP + 2 * OWN_SAE_MFLOP
    assert groups["memory_bytes"] == 520 * 2**20
    assert groups["all_layers_delta_ce"] == 0.7
    assert groups["intervals"]["all_layers_delta_ce"] == [0.6, 0.8]
    assert {"num_tokens", "seconds", "published_pflop", "mean_fvu"} < set(groups)
    assert record["matched_cost"][0]["one"] == "groups"
    assert set(record["units"]) <= set(groups)


def test_a_comparison_with_another_run_is_read_back_as_it_was_written(four):
    mine = compare(RunRecords.read(four))
    written = mine.model_copy(update={"against": "other"})
    written.write(four, "eval/against/other/summary.json")
    (found,) = read_against(four)
    assert found == written
    assert "Beside the suites of other" in render(four)


def test_suites_of_two_runs_are_compared_under_their_own_names(four, tmp_path: Path):
    other = make_run(tmp_path / "other", layers=4, logged=10)
    mine, its = RunRecords.read(four), RunRecords.read(other)
    for kind in ("reconstruction", "losses"):
        record, beside = getattr(mine, kind), getattr(its, kind)
        keys = ("suites", "layers", "groups", "differences", "all_layers", "all_layers_differences")
        update = {
            key: getattr(record, key) | {f"other/{name}": found for name, found in getattr(beside, key).items()}
            for key in keys
            if hasattr(record, key)
        }
        record.model_copy(update=update).write(four, f"eval/against/other/{kind}.json")
    assert write_summary(four, other) == "eval/against/other/summary.json"
    (found,) = read_against(four)
    assert list(found.suites) == ["baseline", "groups", "other/baseline", "other/groups"]
    alone = {**compare(mine).suites, **{f"other/{name}": one for name, one in compare(its).suites.items()}}
    assert [one.mean_fvu for one in found.suites.values()] == [one.mean_fvu for one in alone.values()]
    assert [one.one for one in found.matched_cost] == ["groups", "other/baseline", "other/groups"]


def test_before_training_there_is_no_cost_beside_quality(tmp_path: Path):
    html = render(make_run(tmp_path / "planned", layers=4, stages=("tokens", "distances", "plan")))
    assert 'id="suite-table"' not in html


def test_without_a_log_nothing_is_said_of_equal_cost(four):
    records = replace(RunRecords.read(four), log=())
    found = compare(records)
    assert found.matched_cost == ()
    notes = suite_frame("suite-table", "", list(found.suites.values()), found.matched_cost).notes
    assert len(notes) == 1 and "at equal tokens" in notes[0]


def test_curves_that_do_not_meet_are_said_not_to_meet(four):
    (found,) = compare(RunRecords.read(four)).matched_cost
    apart = found.model_copy(update={"flops_at_fvu": (1.0, None), "fvu_at_flops": (None, 0.5)})
    assert "do not meet" in matched_sentence(apart)


def test_the_table_of_groups_has_a_row_per_group_with_mean_and_worst(four):
    groups = group_frame(RunRecords.read(four))
    assert [column.name for column in groups.columns][:4] == ["group", "layers", "fvu_mean", "fvu_worst"]
    assert [cell.sort for cell in groups.cells[0]][:4] == [0, 3, pytest.approx(0.15), pytest.approx(0.16)]
