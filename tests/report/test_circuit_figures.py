"""The figures of circuits and of shared directions, from the records that the evaluation writes."""

from __future__ import annotations

import re

import pytest
from circuit_records import REFUSED, SIZES, circuits, similarity
from test_page import HOSTILE

from groupsae.analysis.run_records import RunRecords
from groupsae.records.types.similarity import DictionaryName
from groupsae.report.figures import faithfulness_curves, shared_directions


def drawn_circuits(record):
    return faithfulness_curves(RunRecords("run", circuits=record))


def drawn_similarity(record):
    return shared_directions(RunRecords("run", similarity=record))


def texts(drawing):
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)


def test_every_scored_task_has_a_panel_with_errors_and_one_without():
    drawing = drawn_circuits(circuits())
    shown = texts(drawing)
    for task in ("closing-quote", "pairs"):
        assert f"{task}: SAE errors kept" in shown and f"{task}: SAE errors removed" in shown
    assert not any(text.startswith("greater-than") for text in shown)
    assert {"one SAE per layer", "groups", "faithfulness", "completeness", *map(str, SIZES)} <= set(shown)


def test_the_caption_says_how_well_the_model_does_and_what_was_not_scored():
    caption = drawn_circuits(circuits()).caption
    assert "closing-quote (99\u202f% right, 30 test prompts)" in caption
    assert f"Not scored: greater-than: {REFUSED}." in caption


@pytest.mark.parametrize("record", [None, circuits(tasks=()).model_copy(update={"tasks": {}}), circuits(tasks=())])
def test_without_a_scored_task_there_is_no_figure(record):
    assert drawn_circuits(record) is None


def test_ratios_that_are_not_defined_are_left_out():
    whole = drawn_circuits(circuits(tasks=("pairs",))).svg
    assert len(drawn_circuits(circuits(tasks=("pairs",), undefined="groups")).svg) < len(whole)


@pytest.mark.parametrize("record", [None, similarity(1)])
def test_one_dictionary_has_nothing_to_share(record):
    assert drawn_similarity(record) is None


def test_every_two_dictionaries_have_a_number():
    shown = texts(drawn_similarity(similarity()))
    assert "0.32" in shown and "0.35" in shown
    assert "1.00" not in shown, "what a dictionary shares with itself is not drawn"
    assert {"layer 0", "layer 2", "group 0–2"} <= set(shown)


def test_the_caption_says_what_chance_would_give():
    assert "Random directions would give 0.25 to 0.31." in drawn_similarity(similarity()).caption


def test_many_dictionaries_are_drawn_without_numbers():
    numbered, plain = (texts(drawn_similarity(similarity(count))) for count in (16, 20))
    assert sum(text.startswith("0.") for text in numbered) >= 16 * 15
    assert sum(text.startswith("0.") for text in plain) < 20, "only the ticks of the color bar"


def test_dictionaries_alike_all_over_can_be_drawn():
    assert drawn_similarity(similarity(alike=True)) is not None


def test_names_in_a_record_are_inert():
    record = similarity(first=DictionaryName(suite=HOSTILE, group=HOSTILE))
    drawings = (drawn_circuits(circuits(suites=(HOSTILE,), tasks=(HOSTILE,))), drawn_similarity(record))
    for drawing in drawings:
        assert "<img" not in drawing.svg
