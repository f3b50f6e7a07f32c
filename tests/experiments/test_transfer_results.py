"""What is drawn from a transfer experiment's record."""

import pytest
from transfer_results import TransferResults

LAYERS = ("layers.0", "layers.1", "layers.2")


def scores(fvu, l0=4.0, ce_score=None):
    return {"fvu": fvu, "delta_ce": 2 * fvu, "ce_score": 1 - fvu if ce_score is None else ce_score, "l0": l0}


def record():
    zero_shot = {j: {i: scores(0.1 + 0.2 * abs(a - b)) for b, i in enumerate(LAYERS)} for a, j in enumerate(LAYERS)}
    sources = {
        "forward": {"layers.0": None, "layers.1": "layers.0", "layers.2": "layers.1"},
        "backward": {"layers.0": "layers.1", "layers.1": "layers.2", "layers.2": None},
        "group": {name: name for name in LAYERS},
    }
    looked = {"forward": dict.fromkeys(LAYERS[1:], scores(0.2)), "backward": dict.fromkeys(LAYERS[:2], scores(0.1))}
    looked |= {"group": dict.fromkeys(LAYERS, scores(0.05)), "scratch": dict.fromkeys(LAYERS, scores(0.3))}
    pair = {"l0": 4.0, "transfer": 0.2, "scratch": 0.4}
    return {
        "hookpoints": LAYERS,
        "sources": sources,
        "zero_shot": zero_shot,
        "groups": dict.fromkeys(LAYERS, scores(0.15)),
        "looks": [{"tokens": 100, "scores": looked, "matched": {d: dict.fromkeys(LAYERS, pair) for d in sources}}],
        "budgets": [],
    }


@pytest.mark.parametrize(
    ("direction", "zero", "progress", "scratch"),
    [("forward", 0.3, 0.5, 0.0), ("backward", 0.3, 1.0, 0.0), ("group", 0.15, 2.0, -3.0)],
)
def test_progress_is_0_at_zero_shot_and_1_at_the_base_sae(direction, zero, progress, scratch):
    start, look = TransferResults(record()).looks[direction]
    assert start.transfer.fvu == pytest.approx(zero)
    assert start.progress == {"fvu": 0.0, "delta_ce": 0.0, "ce_score": 0.0}
    for measure in ("fvu", "delta_ce", "ce_score"):
        assert look.progress[measure] == pytest.approx(progress)
        assert look.scratch_progress[measure] == pytest.approx(scratch, abs=1e-9)


def test_scratch_and_base_are_means_over_the_layers_that_start_warm():
    values = record()
    values["looks"][0]["scores"]["scratch"]["layers.0"] = scores(9.0)
    values["zero_shot"]["layers.0"]["layers.0"] = scores(9.0)
    results = TransferResults(values)
    assert results.layers("forward") == ["layers.1", "layers.2"]
    assert results.looks["forward"][1].scratch.fvu == pytest.approx(0.3)
    assert results.base_mean("forward").fvu == pytest.approx(0.1)
    assert results.base_mean("backward").fvu == pytest.approx(4.55)


def test_a_score_that_some_layer_lacks_is_left_out():
    values = record()
    values["looks"][0]["scores"]["forward"]["layers.1"] = scores(0.2) | {"ce_score": None}
    look = TransferResults(values).looks["forward"][1]
    assert look.transfer.ce_score is None and look.progress["ce_score"] is None
    assert look.progress["fvu"] == pytest.approx(0.5)


def test_fvu_at_one_l0_is_a_mean_over_layers():
    assert TransferResults(record()).looks["group"][1].matched_fvu == (pytest.approx(0.2), pytest.approx(0.4))
