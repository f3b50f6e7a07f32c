"""Suites side by side: the summary, another run beside it, the table of suites, and the tables that are folded away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_builder import OWN_LM_MFLOP, OWN_SAE_MFLOP, make_run

from groupsae.analysis.frames import suite_frame
from groupsae.analysis.run_records import RunRecords
from groupsae.analysis.summary import compare, read_against, write_summary
from groupsae.report.page import render
from groupsae.report.tables import group_frame

GROUPS = [["layers.0", "layers.1", "layers.2"], ["layers.3"]]


@pytest.fixture
def four(tmp_path: Path):
    return make_run(tmp_path / "four", layers=4, groups=GROUPS, logged=10)


def test_the_summary_holds_every_suites_cost_and_quality(four):
    assert write_summary(four) == "eval/summary.json"
    record = json.loads(four.file("eval/summary.json").read_text())
    groups = record["suites"]["groups"]
    assert groups["own_mflop"] == OWN_LM_MFLOP + 2 * OWN_SAE_MFLOP
    assert groups["memory_bytes"] == 520 * 2**20
    assert groups["all_layers_delta_ce"] == 0.7
    assert groups["intervals"]["all_layers_delta_ce"] == [0.6, 0.8]
    assert {"num_tokens", "seconds", "published_pflop", "mean_fvu"} < set(groups)
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


def test_before_training_there_is_no_cost_beside_quality(tmp_path: Path):
    html = render(make_run(tmp_path / "planned", layers=4, stages=("tokens", "distances", "plan")))
    assert 'id="suite-table"' not in html


def test_it_is_said_at_equal_what_suites_are_compared_and_what_would_cost_as_much(four):
    found = list(compare(RunRecords.read(four)).suites.values())
    (note,) = suite_frame("suite-table", "", found).notes
    share = (OWN_LM_MFLOP + 2 * OWN_SAE_MFLOP) / (OWN_LM_MFLOP + 4 * OWN_SAE_MFLOP)
    assert "at equal tokens" in note and f"with {1 / share:.2f} times the tokens" in note
    assert suite_frame("suite-table", "", found[:1]).notes == []


def test_the_table_of_groups_has_a_row_per_group_with_mean_and_worst(four):
    groups = group_frame(RunRecords.read(four))
    assert [column.name for column in groups.columns][:4] == ["group", "layers", "fvu_mean", "fvu_worst"]
    assert [cell.sort for cell in groups.cells[0]][:4] == [0, 3, pytest.approx(0.15), pytest.approx(0.16)]
