"""The sections of circuits and similarity: there where they were measured, nothing where they were not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from circuit_records import REFUSED, circuits, shares
from run_builder import make_run
from test_page import HOSTILE, figures_of

from groupsae.analysis.run_records import RunRecords
from groupsae.analysis.summary import summarize
from groupsae.records import RunDirectory
from groupsae.records.types.record import Record
from groupsae.records.types.similarity import DictionaryName
from groupsae.report.page import render


def summaries(run: RunDirectory):
    return summarize(RunRecords.read(run))


@pytest.fixture
def made(tmp_path: Path):
    """Makes a finished run that has these records too."""

    def make(*records: Record) -> RunDirectory:
        run = make_run(tmp_path / "run", layers=4)
        for record in records:
            record.write(run)
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
    html = section(render(made(circuits())), "circuits")
    assert figures_of(html) == ["circuits"]
    rows = cells(html, "circuit-table")
    assert [row[:2] for row in rows] == [
        [task, suite] for task in ("closing-quote", "pairs") for suite in ("one SAE per layer", "groups")
    ]
    assert rows[0][2:4] == ["0.90 (0.80 to 1.00)", "0.50 (0.40 to 0.60)"]
    assert cells(html, "task-table") == [
        ["closing-quote", "scored", "64", "62", "30", "99\u202f%"],
        ["pairs", "scored", "64", "62", "30", "99\u202f%"],
        ["greater-than", REFUSED, "64", "62", "30", "–"],
    ]


def test_where_no_task_was_scored_the_page_says_why(made):
    html = section(render(made(circuits(tasks=()))), "circuits")
    assert figures_of(html) == [] and "circuit-table" not in html
    assert REFUSED in html


def test_a_ratio_that_is_not_defined_is_a_dash(made):
    run = made(circuits(tasks=("pairs",), undefined="groups"))
    assert cells(render(run), "circuit-table")[1][2:4] == ["–", "–"]
    assert [suite.circuit_ceiling for suite in summaries(run)] == [0.9, None]


def test_shared_directions_firing_and_spreading_have_a_table_each(made):
    run = made(shares())
    html = section(render(run), "similarity")
    assert figures_of(html) == ["mmcs"]
    assert cells(html, "dictionary-table")[0] == ["layer 0", "group 0–2", "0.360", "0.310"]
    assert cells(html, "concordance-table") == [["layers.0", "layer 0, group 0–2", "0.190", "–", "150", "243"]]
    assert cells(html, "spreading-table") == [["0–2", "groups", "0.900", "1.25", "0.040", "17"]]
    assert cells(html, "stability-table") == [["0", "baseline, groups", "0.250", "0.500"]]
    assert [suite.mean_concordance for suite in summaries(run)] == [None, 0.19]


def test_names_in_the_records_are_inert(made):
    hostile = DictionaryName(suite=HOSTILE, group=HOSTILE)
    record = shares(other=hostile, suite=HOSTILE, group=HOSTILE)
    html = render(made(circuits(suites=(HOSTILE,), tasks=(HOSTILE,), skipped=HOSTILE), record))
    assert "<img" not in html and html.count("</script>") == 1
    assert "&lt;/script&gt;" in section(html, "circuits") and "&lt;/script&gt;" in section(html, "similarity")
    assert "{{ 7 * 6 }}" in html
