"""What the page says of the plan: prices, predictions beside measurements, the frontier, and what is missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import LM_SECONDS, SAE_SECONDS, make_run
from test_page import HOSTILE, figures_of

from groupsae.records import RunDirectory
from groupsae.report.data import RunData, read_run
from groupsae.report.outlook import look_ahead
from groupsae.report.page import render
from groupsae.report.prices import forecast_sentences, forecast_table, price_table, unpredicted
from groupsae.report.wording import share, size

NAMES = ["layers.0", "layers.1", "layers.2"]
PAIR = [["layers.0"], ["layers.1", "layers.2"]]


def row(groups: list[list[str]], amad: float, seconds: float | None = 60.0) -> dict[str, Any]:
    """A priced candidate: 100 + 50 G by the paper's count, 80 + 20 G by our own."""
    number = len(groups)
    return {
        "num_groups": number, "groups": groups, "amad": amad, "size_weighted_amad": 2 * amad, "largest_diameter": 0.25,
        "mflop_per_token": {"language_model": 100.0, "saes": 50.0 * number, "total": 100.0 + 50.0 * number},
        "own_mflop_per_token": {"language_model": 80.0, "saes": 20.0 * number, "total": 80.0 + 20.0 * number},
        "seconds": seconds, "device_bytes": 0, "host_bytes": 3 * 2**20, "disk_bytes": 1536,
        "fvu": {"value": 0.2, "low": 0.18, "high": 0.23}, "fvu_increase": {"value": 0.1, "low": 0.05, "high": 0.2},
    }  # fmt: skip


def data_of(**plan: Any) -> RunData:
    """Three layers, of which the run puts two together."""
    candidates = [row([NAMES], 0.3), row(PAIR, 0.125), row([[name] for name in NAMES], 0.0)]
    known = {"method": "complete", "candidates": candidates, "methods": {"complete": candidates}}
    return RunData(name="hand", plan=known | {"partitions": {"groups": PAIR}} | plan)


def edited(run: RunDirectory, change) -> RunDirectory:
    """The run with every candidate of its plan changed."""
    plan = run.read_json("plan.json")
    for rows in [plan["candidates"], *plan.get("methods", {}).values()]:
        for candidate in rows:
            change(candidate)
    run.write_json("plan.json", plan)
    return run


def test_a_row_of_the_price_table_is_worked_out_by_hand():
    table = price_table(data_of())
    assert [name for name, _ in table.columns] == [
        "groups", "chosen_by", "amad", "size_weighted_amad", "largest_diameter", "paper_mflop", "paper_saving",
        "own_mflop", "own_saving", "seconds", "memory_bytes", "disk_bytes", "fvu", "fvu_low", "fvu_high",
    ]  # fmt: skip
    texts = [cell.text.replace("\u202f", " ").replace("\u00a0", " ") for cell in table.rows[1]]
    assert texts == [
        "2", "run, paper", "0.125", "0.250", "0.250", "200.0", "20 %", "120.0", "14 %", "1 min", "3.0 MiB", "1.5 KiB",
        "0.200", "0.180", "0.230",
    ]  # fmt: skip
    assert table.rows[1][8].value == pytest.approx(1 - 120 / 140)
    assert table.marked == {1}
    assert sum(width for _, width in table.heads) == len(table.columns)


def test_the_papers_choice_is_by_complete_linkage_whatever_the_run_takes():
    rows = [row([NAMES], 0.1), row(PAIR, 0.05)]
    outlook = look_ahead(data_of(method="optimal", methods={"optimal": rows, "complete": data_of().candidates}))
    assert outlook.papers.method == "complete" and outlook.papers.num_groups == 2
    singles = {"groups": [[name] for name in NAMES]}
    table = price_table(data_of(partitions=singles))
    assert [cells[1].text for cells in table.rows] == ["", "paper", "run"]


def test_the_papers_rule_says_nothing_of_other_distances():
    distances = {"metric": "cka", "hookpoints": NAMES, "matrix": []}
    assert look_ahead(RunData(name="cka", plan=data_of().plan, distances=distances)).papers is None


def test_the_device_counts_as_memory_where_there_is_one():
    candidates = [row(PAIR, 0.1) | {"device_bytes": 5 * 2**30}]
    (only,) = price_table(data_of(candidates=candidates)).rows
    assert "5.0\u00a0GiB" in [cell.text for cell in only]


def test_predictions_stand_beside_what_was_measured(tmp_path: Path):
    run = make_run(tmp_path / "four", layers=4)
    data = read_run(run)
    saes = len({tuple(group) for division in data.plan["partitions"].values() for group in division})
    time, groups, alone = forecast_table(data)
    taken = 1000 + 50 + 100 * saes
    predicted = LM_SECONDS + SAE_SECONDS * saes
    assert time.meaning == f"all {saes} SAEs of this run in one pass"
    assert time.change == share(taken / predicted - 1)
    assert groups.name == "Mean FVU, groups" and alone.name == "Mean FVU, one SAE per layer"
    assert alone.values == ("0.125 (0.114 to 0.138)", "0.115")
    assert alone.change == "−8\u202f%"


def test_without_a_pilot_the_increase_is_compared_in_percentage_points(tmp_path: Path):
    data = read_run(make_run(tmp_path / "four", layers=4, pilot=False))
    increase = forecast_table(data)[-1]
    assert increase.name == "Increase of mean FVU"
    assert re.fullmatch(r"[+−]\d+\u202fpp", increase.change)


def test_before_training_there_is_nothing_beside_the_prediction(tmp_path: Path):
    run = make_run(tmp_path / "early", layers=4, stages=("tokens", "distances", "group", "plan"))
    assert {len(line.values) for line in forecast_table(read_run(run))} == {1}
    assert "Predicted of this run" in render(run)


def test_a_prediction_is_not_held_against_another_partition(tmp_path: Path):
    run = make_run(tmp_path / "other", layers=4)
    run.write_json("suite.json", {"groups": [["layers.0", "layers.3"], ["layers.1", "layers.2"]]})
    data = read_run(run)
    assert forecast_table(data) == []
    assert not any("as a whole" in sentence for sentence in forecast_sentences(data))


def test_the_best_use_of_the_budget_is_named():
    best = {"budget_flops": 5e12, "num_groups": 4, "num_tokens": 878_089, "fvu": {"value": 0.175}}
    (sentence,) = forecast_sentences(data_of(compute_optimal=best))
    assert sentence.replace("\u00a0", " ") == (
        "For this run’s 5 TFLOP spent on one suite, 4 groups with 878,089 tokens each are predicted best: "
        "mean FVU 0.175 (0.175 to 0.175)."
    )


@pytest.mark.parametrize(("pilot", "words"), [(True, "come from a pilot"), (False, "pythia-160m and pythia-410m")])
def test_the_caption_says_where_predictions_come_from(tmp_path: Path, pilot: bool, words: str):
    html = render(make_run(tmp_path / "four", layers=4, pilot=pilot))
    assert words in html
    assert "AMAD is reported but never minimized" in html


def test_a_pilot_is_proposed_where_there_was_none(tmp_path: Path):
    run = make_run(tmp_path / "four", layers=4, pilot=False)
    _, (command,) = unpredicted(run, read_run(run))
    assert command == f"groupsae plan {run.path} --overwrite --pilot"
    assert f"<code>{command}</code>" in render(run)


def test_a_plan_that_says_everything_asks_for_nothing(run: RunDirectory):
    assert unpredicted(run, read_run(run)) is None


def test_without_seconds_cost_is_counted_in_operations(tmp_path: Path):
    run = edited(make_run(tmp_path / "untimed", layers=5), lambda candidate: candidate.update(seconds=None))
    html = render(run)
    assert "MFLOP per token, by our own count" in html
    assert 'data-column="seconds"' not in html.partition('id="price-table"')[2].partition("</table>")[0]
    assert "--overwrite --calibrate</code>" in html


def test_an_older_plan_is_shown_as_far_as_it_goes(tmp_path: Path):
    new = ("own_mflop_per_token", "total_flops", "seconds", "device_bytes", "host_bytes", "disk_bytes", "fvu",
           "fvu_increase")  # fmt: skip
    run = make_run(tmp_path / "old", layers=4)
    run = edited(run, lambda candidate: [candidate.pop(key) for key in new])
    plan = run.read_json("plan.json")
    run.write_json("plan.json", {key: plan[key] for key in ("method", "choice", "candidates", "partitions")})
    html = render(run)
    assert "frontier" not in figures_of(html) and "cost" in figures_of(html)
    assert "of an older version" in html
    assert 'data-column="paper_saving"' in html and 'data-column="own_saving"' not in html


EVERY_KEY = ("method", "methods", "choice", "candidates", "partitions", "run", "rates", "pilot", "compute_optimal")


@pytest.mark.parametrize("keys", [("candidates",), ("partitions",), EVERY_KEY[:3], EVERY_KEY[5:], EVERY_KEY])
@pytest.mark.parametrize("rest", [{}, dict.fromkeys(EVERY_KEY)], ids=["absent", "null"])
def test_any_key_of_the_plan_may_be_missing(tmp_path: Path, keys: tuple[str, ...], rest: dict[str, None]):
    run = make_run(tmp_path / "part", layers=3, logged=3, stages=("tokens", "distances", "plan"))
    plan = run.read_json("plan.json")
    run.write_json("plan.json", rest | {key: value for key, value in plan.items() if key not in keys})
    assert ("price-table" in figures_and_tables(render(run))) == ("candidates" not in keys)


def figures_and_tables(html: str) -> list[str]:
    return re.findall(r'<(?:figure|table)[^>]* id="([\w-]+)"', html)


def test_a_plan_without_weights_has_prices_and_says_what_is_missing(tmp_path: Path):
    run = make_run(tmp_path / "weightless", layers=4, stages=("plan",))
    unknown = ("amad", "size_weighted_amad", "largest_diameter")

    def forget(candidate: dict[str, Any]) -> None:
        candidate.update(seconds=None, fvu=None, fvu_increase=None)
        for measure in unknown:
            candidate.pop(measure, None)

    html = render(edited(run, forget))
    assert "frontier" not in figures_of(html)
    assert 'data-column="own_mflop"' in html and 'data-column="amad"' not in html
    assert "which needs the model’s weights" in html
    stages = re.findall(r"<br><code>groupsae (\w+) ", html)
    assert stages == ["tokens", "distances", "group", "plan"]


def test_names_in_a_plan_are_inert(tmp_path: Path):
    run = make_run(tmp_path / "hostile", layers=4)
    plan = run.read_json("plan.json")
    plan["method"] = HOSTILE
    plan["methods"] = {HOSTILE: plan["candidates"], f"{HOSTILE}2": plan["methods"]["equal"]}
    plan["choice"]["why"] = HOSTILE
    run.write_json("plan.json", plan)
    html = render(run)
    assert "frontier" in figures_of(html)
    assert "<img" not in html and html.count("</script>") == 1


def test_commands_name_the_run_from_where_one_stands(tmp_path: Path, monkeypatch):
    run = make_run(tmp_path / "runs" / "begun", layers=3, stages=("tokens",))
    assert f"groupsae plan {run.path}" in render(run)
    monkeypatch.chdir(tmp_path)
    assert "groupsae plan runs/begun<" in render(run)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0 B"), (1000, "1.0 KiB"), (587_282_944, "560 MiB"), (2**31, "2.0 GiB")]
)
def test_a_size_has_a_unit_that_suits_it(value: float | None, text: str):
    assert size(value).replace("\u00a0", " ") == text


@pytest.mark.parametrize(("value", "text"), [(0.1, "+10 %"), (-0.164, "−16 %"), (0.001, "0 %"), (None, "–")])
def test_a_change_has_a_sign(value: float | None, text: str):
    assert share(value).replace("\u202f", " ") == text
