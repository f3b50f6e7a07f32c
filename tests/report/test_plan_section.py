"""What the page says of the plan: costs, predictions beside measurements, the frontier, and what is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_builder import (
    LM_SECONDS,
    SAE_SECONDS,
    change_candidates,
    change_plan,
    cost,
    make_run,
    records_of,
)
from test_page import HOSTILE, figures_of

from groupsae.analysis.candidates import view_plan
from groupsae.analysis.frames import candidate_frame
from groupsae.analysis.run_records import RunRecords
from groupsae.estimate import Estimate
from groupsae.metrics import change
from groupsae.partition import Group, Partition
from groupsae.records import RunDirectory
from groupsae.records.types.candidate import Candidate, TokenFlops
from groupsae.records.types.distances import DistancesRecord
from groupsae.records.types.plan import ComputeOptimal, PlanRecord
from groupsae.records.types.suites import SuitesRecord
from groupsae.report.forecast import forecast_rows, forecast_sentences, unpredicted
from groupsae.report.page import render

NAMES = ("layers.0", "layers.1", "layers.2")
PAIR = (("layers.0",), ("layers.1", "layers.2"))
SINGLES = Partition.singletons(NAMES).groups


def row(groups: tuple[Group, ...], amad: float, method: str = "complete", **costs: Any) -> Candidate:
    """A candidate with costs: 100 + 50 G by the published count, 80 + 20 G by our own."""
    number = len(groups)
    known = {
        "published_mflop": TokenFlops(language_model=100.0, saes=50.0 * number),
        "own_mflop": TokenFlops(language_model=80.0, saes=20.0 * number),
        "seconds": 60.0,
        "host_bytes": 3 * 2**20,
        "disk_bytes": 1536,
    }
    return Candidate(
        method=method,
        groups=groups,
        amad=amad,
        size_weighted_amad=2 * amad,
        largest_diameter=0.25,
        cost=cost(number, **known | costs),
        fvu=Estimate(0.2, 0.18, 0.23),
        fvu_increase=Estimate(0.1, 0.05, 0.2),
    )


ROWS = (row((NAMES,), 0.3), row(PAIR, 0.125), row(SINGLES, 0.0))


def data_of(**plan: Any) -> RunRecords:
    """Three layers, of which the run puts two together."""
    known = {"method": "complete", "candidates": {"complete": ROWS}, "choice": ROWS[1], "suites": {"groups": PAIR}}
    return records_of(**known | plan)


def texts(records: RunRecords) -> list[list[str]]:
    cells = candidate_frame(view_plan(records)).cells
    return [[cell.text.replace("\u202f", " ").replace("\u00a0", " ") for cell in line] for line in cells]


def test_a_row_of_the_table_of_candidates_is_worked_out_by_hand():
    table = candidate_frame(view_plan(data_of()))
    assert [column.name for column in table.columns] == [
        "num_groups", "chosen_by", "amad", "size_weighted_amad", "largest_diameter", "published_mflop",
        "published_saving", "own_mflop", "own_saving", "seconds", "memory_bytes", "disk_bytes", "fvu", "fvu_low",
        "fvu_high",
    ]  # fmt: skip
    assert texts(data_of())[1] == [
        "2", "run, published rule", "0.125", "0.250", "0.250", "200.0", "20 %", "120.0", "14 %", "60 s", "3 MiB",
        "2 KiB", "0.200", "0.180", "0.230",
    ]  # fmt: skip
    assert table.cells[1][8].sort == pytest.approx(1 - 120 / 140)
    assert table.marked == {1}
    assert sum(width for _, width in table.heads) == len(table.columns)


def test_the_published_choice_is_by_complete_linkage_whatever_the_run_takes():
    rows = (row((NAMES,), 0.1, "optimal"), row(PAIR, 0.05, "optimal"))
    both = {"optimal": rows, "complete": ROWS}
    plan = view_plan(data_of(method="optimal", candidates=both, choice=rows[1]))
    assert plan.published.method == "complete" and plan.published.num_groups == 2
    table = texts(data_of(choice=ROWS[2], suites={"groups": SINGLES}))
    assert [cells[1] for cells in table] == ["", "published rule", "run"]


def test_the_published_rule_says_nothing_of_other_distances():
    matrix = ((0.0,) * 3,) * 3
    distances = DistancesRecord(metric="cka", hookpoints=NAMES, matrix=matrix, standard_error=matrix, num_tokens=1)
    assert view_plan(replace(data_of(), distances=distances)).published is None


def test_the_device_counts_as_memory_where_there_is_one():
    (only,) = texts(data_of(candidates={"complete": (row(PAIR, 0.1, device_bytes=5 * 2**30),)}))
    assert "5.0 GiB" in only


def test_predictions_stand_beside_what_was_measured(tmp_path: Path):
    run = make_run(tmp_path / "four", layers=4)
    data = RunRecords.read(run)
    saes = len({group for groups in data.plan.suites.values() for group in groups})
    time, groups, alone = forecast_rows(data)
    taken = 1000 + 50 + 100 * saes
    predicted = LM_SECONDS + SAE_SECONDS * saes
    assert time.meaning == f"all {saes} SAEs of this run in one pass"
    assert time.change == change(taken / predicted - 1)
    assert groups.title == "Mean FVU, groups" and alone.title == "Mean FVU, one SAE per layer"
    assert alone.values == ("0.125 (0.114 to 0.138)", "0.115")
    assert alone.change == "−8\u202f%"


def test_without_a_pilot_the_increase_is_compared_in_percentage_points(tmp_path: Path):
    data = RunRecords.read(make_run(tmp_path / "four", layers=4, pilot=False))
    increase = forecast_rows(data)[-1]
    assert increase.title == "Increase of mean FVU"
    assert re.fullmatch(r"[+−]\d+\u202fpp", increase.change)


def test_before_training_there_is_nothing_beside_the_prediction(tmp_path: Path):
    run = make_run(tmp_path / "early", layers=4, stages=("tokens", "distances", "group", "plan"))
    assert {len(line.values) for line in forecast_rows(RunRecords.read(run))} == {1}
    assert "Predicted of this run" in render(run)


def test_a_prediction_is_not_held_against_another_partition(tmp_path: Path):
    run = make_run(tmp_path / "other", layers=4)
    apart = SuitesRecord({"groups": (("layers.0", "layers.3"), ("layers.1", "layers.2"))})
    run.write_json("suite.json", apart.model_dump(mode="json"))
    data = RunRecords.read(run)
    assert forecast_rows(data) == []
    assert not any("as a whole" in sentence for sentence in forecast_sentences(data))


def test_the_best_use_of_the_budget_is_named():
    best = ComputeOptimal(budget_flops=5e12, num_groups=4, num_tokens=878_089, fvu=Estimate(0.175, 0.17, 0.18))
    sentence = forecast_sentences(data_of(compute_optimal=best))[-1]
    assert sentence.replace("\u00a0", " ") == (
        "If this run’s 5 TFLOP were spent on one suite, 4 groups with 878,089 tokens each are predicted to be best: "
        "mean FVU 0.175 (0.170 to 0.180)."
    )


@pytest.mark.parametrize(("pilot", "words"), [(True, "come from a pilot"), (False, "pythia-160m and pythia-410m")])
def test_the_caption_says_where_predictions_come_from(tmp_path: Path, pilot: bool, words: str):
    html = render(make_run(tmp_path / "four", layers=4, pilot=pilot))
    assert words in html
    assert "AMAD is reported but never minimized" in html


def test_a_pilot_is_proposed_where_there_was_none(tmp_path: Path):
    run = make_run(tmp_path / "four", layers=4, pilot=False)
    _, (command,) = unpredicted(run, RunRecords.read(run))
    assert command == f"groupsae plan {run.path} --overwrite --pilot"
    assert f"<code>{command}</code>" in render(run)


def test_a_plan_that_says_everything_asks_for_nothing(run: RunDirectory):
    assert unpredicted(run, RunRecords.read(run)) is None


def test_without_seconds_cost_is_counted_in_operations(tmp_path: Path):
    run = make_run(tmp_path / "untimed", layers=5)
    plan = PlanRecord.read(run)
    untimed = {
        name: tuple(one.model_copy(update={"cost": cost(one.num_groups, seconds=None)}) for one in found)
        for name, found in plan.candidates.items()
    }
    change_plan(run, candidates=untimed)
    html = render(run)
    assert "MFLOP per token, by our count" in html
    assert 'data-column="seconds"' not in html.partition('id="candidate-table"')[2].partition("</table>")[0]
    assert "--overwrite --calibrate</code>" in html


def test_a_plan_without_weights_has_costs_and_says_what_is_missing(tmp_path: Path):
    run = make_run(tmp_path / "weightless", layers=4, stages=("plan",))
    unknown = ("amad", "size_weighted_amad", "largest_diameter", "fvu", "fvu_increase")
    plan = PlanRecord.read(run)
    known = {
        name: tuple(
            one.model_copy(update=dict.fromkeys(unknown) | {"cost": cost(one.num_groups, seconds=None)})
            for one in found
        )
        for name, found in plan.candidates.items()
    }
    html = render(change_plan(run, candidates=known))
    assert "frontier" not in figures_of(html)
    assert 'data-column="own_mflop"' in html and 'data-column="amad"' not in html
    assert "which needs the model’s weights" in html
    stages = re.findall(r"<br><code>groupsae (\w+) ", html)
    assert stages == ["tokens", "distances", "group", "plan"]


def test_flops_that_are_not_known_have_no_column(tmp_path: Path):
    unknown = dict.fromkeys(("published_mflop", "own_mflop", "published_flops", "own_flops"))
    run = change_candidates(make_run(tmp_path / "uncounted", layers=4), cost=cost(2, **unknown))
    table = render(run).partition('id="candidate-table"')[2].partition("</table>")[0]
    assert 'data-column="memory_bytes"' in table and "mflop" not in table


def test_a_grouping_without_a_plan_has_no_costs(tmp_path: Path):
    html = render(make_run(tmp_path / "grouped", layers=4, stages=("tokens", "distances", "group")))
    assert 'id="candidate-table"' not in html and "Not there yet; made by <code>groupsae plan" in html


def test_names_in_a_plan_are_inert(tmp_path: Path):
    run = make_run(tmp_path / "hostile", layers=4)
    plan = PlanRecord.read(run)
    methods = {HOSTILE: plan.candidates["complete"], f"{HOSTILE}2": plan.candidates["equal"]}
    html = render(change_plan(run, method=HOSTILE, candidates=methods, why=HOSTILE))
    assert "frontier" in figures_of(html)
    assert "<img" not in html and html.count("</script>") == 1


def test_commands_name_the_run_from_where_one_stands(tmp_path: Path, monkeypatch):
    run = make_run(tmp_path / "runs" / "begun", layers=3, stages=("tokens",))
    assert f"groupsae plan {run.path}" in render(run)
    monkeypatch.chdir(tmp_path)
    assert "groupsae plan runs/begun<" in render(run)


@pytest.mark.parametrize(("value", "text"), [(0.1, "+10 %"), (-0.164, "−16 %"), (0.001, "0 %"), (None, "-")])
def test_a_change_has_a_sign(value: float | None, text: str):
    assert change(value).replace("\u202f", " ") == text
