"""The figures of circuits and of shared directions, from the records that the evaluation writes."""

from __future__ import annotations

import copy
import re

import pytest
from test_page import HOSTILE

from groupsae.report.figures.circuits import faithfulness_curves
from groupsae.report.figures.similarity import shared_directions

SIZES = (1, 8, 64)


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def curve(values):
    points = [
        {"size": size, "m": value, "ratio": estimate(value), "median": value}
        for size, value in zip(SIZES, values, strict=True)
    ]
    return {"points": points, "area": estimate(0.5), "area_linear": estimate(0.6)}


def suite(height):
    sizes = [{"size": size, "nodes": 3 * size, "weakest_effect": 0.1} for size in SIZES]
    variants = {
        name: {
            "empty": 0.0,
            "ceiling": estimate(ceiling),
            "faithfulness": curve((0.1, height / 2, height)),
            "completeness": curve((1 - height / 3, 0.3, 0.0)),
        }
        for name, ceiling in (("error_kept", 1.0), ("error_removed", height))
    }
    return {"sizes": sizes, **variants}


def circuits(suites=("baseline", "groups"), tasks=("closing-quote", "pairs")):
    skill = {"accuracy": 0.99, "logit_difference": 5.0, "patch_logit_difference": -5.0}
    done = {"given": 64, "dropped": {}, "num_choose": 32, "num_test": 30, "skill": skill, "skipped": None, "full": 5.0}
    found = {name: done | {"suites": {one: suite(0.9) for one in suites}} for name in tasks}
    refused = done | {"skill": None, "skipped": "only 0 of 64 pairs can be used", "full": None, "suites": {}}
    return {"tasks": found | {"greater-than": refused}}


def similarity(count=4):
    names = [{"suite": "baseline", "group": f"layers.{index}"} for index in range(count - 1)]
    matrix = [[1.0 if a == b else 0.3 + 0.01 * a + 0.02 * b for b in range(count)] for a in range(count)]
    dictionaries = [*names, {"suite": "groups", "group": "layers.0-2"}]
    return {"dictionaries": dictionaries, "mmcs": matrix, "mmcs_random": [0.25] * (count - 1) + [0.31]}


def texts(drawing):
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)


def test_every_scored_task_has_a_panel_with_errors_and_one_without():
    drawing = faithfulness_curves(circuits())
    shown = texts(drawing)
    for task in ("closing-quote", "pairs"):
        assert f"{task}: SAE errors kept" in shown and f"{task}: SAE errors removed" in shown
    assert not any(text.startswith("greater-than") for text in shown)
    assert {"one SAE per layer", "groups", "faithfulness", "completeness", *map(str, SIZES)} <= set(shown)


def test_the_caption_says_how_well_the_model_does_and_what_was_not_scored():
    caption = faithfulness_curves(circuits()).caption
    assert "closing-quote (right 99% of the time, 30 test prompts)" in caption
    assert "Not scored: greater-than: only 0 of 64 pairs can be used." in caption


@pytest.mark.parametrize("record", [None, {"tasks": {}}, circuits(tasks=())])
def test_without_a_scored_task_there_is_no_figure(record):
    assert faithfulness_curves(record) is None


def test_ratios_that_are_not_defined_are_left_out():
    record = circuits(tasks=("pairs",))
    whole = faithfulness_curves(copy.deepcopy(record)).svg
    for one in record["tasks"]["pairs"]["suites"]["groups"].values():
        if isinstance(one, dict):
            one["ceiling"] = None
            for name in ("faithfulness", "completeness"):
                for point in one[name]["points"]:
                    point["ratio"] = None
    assert len(faithfulness_curves(record).svg) < len(whole)


@pytest.mark.parametrize("record", [None, similarity(1)])
def test_one_dictionary_has_nothing_to_share(record):
    assert shared_directions(record) is None


def test_every_two_dictionaries_have_a_number():
    shown = texts(shared_directions(similarity()))
    assert ".32" in shown and ".35" in shown
    assert "1.00" not in shown, "what a dictionary shares with itself is not drawn"
    assert {"layer 0", "layer 2", "group 0–2"} <= set(shown)


def test_the_caption_says_what_chance_would_give():
    assert "Random directions would give 0.25 to 0.31." in shared_directions(similarity()).caption


def test_many_dictionaries_are_drawn_without_numbers():
    assert not any(text.startswith(".") for text in texts(shared_directions(similarity(20))))


def test_dictionaries_alike_all_over_can_be_drawn():
    record = similarity()
    record["mmcs"] = [[1.0] * 4] * 4
    assert shared_directions(record) is not None


def test_drawing_leaves_the_record_as_it_was():
    for draw, record in ((faithfulness_curves, circuits()), (shared_directions, similarity())):
        before = copy.deepcopy(record)
        draw(record)
        assert record == before


def test_names_in_a_record_are_inert():
    record = similarity()
    record["dictionaries"][0] = {"suite": HOSTILE, "group": HOSTILE}
    drawings = (faithfulness_curves(circuits(suites=(HOSTILE,), tasks=(HOSTILE,))), shared_directions(record))
    for drawing in drawings:
        assert "<img" not in drawing.svg
