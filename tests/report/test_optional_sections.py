"""The sections of circuits and similarity: there where they were measured, nothing where they were not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_runs import make_run
from test_circuit_figures import circuits, similarity
from test_page import HOSTILE, figures_of

from groupsae.report.page import render
from groupsae.report.summary import summarize

OWN, SHARED = {"suite": "baseline", "group": "layers.0"}, {"suite": "groups", "group": "layers.0-2"}
SPREADING = {"entropy": 0.9, "mean_layer": 1.25, "one_layer_share": 0.04, "silent": 17}


def shares():
    """eval/similarity.json"""
    pair = {"hookpoint": "layers.0", "one": OWN, "other": SHARED, "one_in_other": 0.19, "other_in_one": None}
    found = {"group": "layers.0", "one": "baseline", "other": "groups"}
    return similarity() | {
        "concordance": [pair | {"silent_one": 150, "silent_other": 243}],
        "spreading": {"groups": {"layers.0-2": SPREADING}},
        "stability": [found | {"matching": {"share": 0.25, "mean_cosine": 0.5, "pairs": 9, "method": "mutual"}}],
    }


@pytest.fixture
def made(tmp_path: Path):
    """Makes a finished run that has these records too."""

    def make(**records):
        run = make_run(tmp_path / "run", layers=4)
        for name, record in records.items():
            run.write_json(f"eval/{name}.json", record)
        return run

    return make


def section(html: str, key: str) -> str:
    return re.search(rf'<section id="{key}">.*?</section>', html, re.DOTALL).group()


def cells(html: str, table: str) -> list[list[str]]:
    """The rows of a table as texts."""
    body = re.search(rf'id="{table}".*?<tbody>(.*?)</tbody>', html, re.DOTALL).group(1)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


def test_without_the_records_there_is_no_section_and_no_word_of_it(made):
    html = render(made())
    assert 'id="circuits"' not in html and 'id="similarity"' not in html
    assert not {"circuits", "mmcs"} & set(figures_of(html))


def test_every_scored_task_has_a_row_per_suite_and_every_task_its_outcome(made):
    html = section(render(made(circuits=circuits())), "circuits")
    assert figures_of(html) == ["circuits"]
    rows = cells(html, "circuit-table")
    assert [row[:2] for row in rows] == [
        [task, suite] for task in ("closing-quote", "pairs") for suite in ("one SAE per layer", "groups")
    ]
    assert rows[0][2:4] == [".90 (.80 to 1.00)", ".50 (.40 to .60)"]
    assert cells(html, "task-table") == [
        ["closing-quote", "scored", "64", "62", "30", "99\u202f%"],
        ["pairs", "scored", "64", "62", "30", "99\u202f%"],
        ["greater-than", "only 0 of 64 pairs can be used", "64", "62", "30", "–"],
    ]


def test_where_no_task_was_scored_the_page_says_why(made):
    html = section(render(made(circuits=circuits(tasks=()))), "circuits")
    assert figures_of(html) == [] and "circuit-table" not in html
    assert "only 0 of 64 pairs can be used" in html


def test_a_ratio_that_is_not_defined_is_a_dash(made):
    record = circuits(tasks=("pairs",))
    found = record["tasks"]["pairs"]["suites"]["groups"]["error_removed"]
    found["ceiling"] = found["faithfulness"]["area"] = None
    run = made(circuits=record)
    assert cells(render(run), "circuit-table")[1][2:4] == ["–", "–"]
    assert [suite.circuit_ceiling for suite in summarize(run)] == [0.9, None]


def test_shared_directions_firing_and_spreading_have_a_table_each(made):
    run = made(similarity=shares())
    html = section(render(run), "similarity")
    assert figures_of(html) == ["mmcs"]
    assert cells(html, "dictionary-table")[0] == ["layer 0", "group 0–2", "0.360", "0.310"]
    assert cells(html, "concordance-table") == [["layers.0", "layer 0, group 0–2", "0.190", "–", "150", "243"]]
    assert cells(html, "spreading-table") == [["0–2", "groups", "0.900", "1.25", "0.040", "17"]]
    assert cells(html, "stability-table") == [["0", "baseline, groups", "0.250", "0.500"]]
    assert [suite.mean_concordance for suite in summarize(run)] == [None, 0.19]


def test_names_in_the_records_are_inert(made):
    record = shares()
    record["concordance"][0]["other"] = record["dictionaries"][0] = {"suite": HOSTILE, "group": HOSTILE}
    record["spreading"] = {HOSTILE: {HOSTILE: SPREADING}}
    hostile = circuits(suites=(HOSTILE,), tasks=(HOSTILE,))
    hostile["tasks"]["greater-than"]["skipped"] = HOSTILE
    html = render(made(circuits=hostile, similarity=record))
    assert "<img" not in html and html.count("</script>") == 1
    assert "&lt;/script&gt;" in section(html, "circuits") and "&lt;/script&gt;" in section(html, "similarity")
    assert "{{ 7 * 6 }}" in html
