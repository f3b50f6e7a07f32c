"""Which positions are left out, and what a sample says of them."""

import math

import pytest
import torch
from tiny import tiny_model

from groupsae.activations.harvest import Harvester
from groupsae.activations.positions import NO_OUTLIERS, OutlierRule, beyond, measure_positions
from groupsae.text.tokens import TokenRows

B, T, D = 4, 32, 8


def sample(sink=(2, 7), factor=100.0):
    """Activations of two hookpoints, at the second of which one position is large, and no special token."""
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, B, T, D, generator=random)
    second[sink] *= factor
    return {"layers.0": first, "layers.1": second}, torch.zeros(B, T, dtype=torch.bool)


def test_a_position_beyond_the_limit_at_one_hookpoint_is_left_out_at_all():
    x, special_BT = sample()
    facts = measure_positions(x, special_BT, OutlierRule())
    beyond_BT = beyond(list(x.values()), list(facts.limit.values()))
    assert beyond_BT.nonzero().tolist() == [[2, 7]]


def test_the_median_is_over_ordinary_positions():
    x, special_BT = sample(factor=1.0)
    clean = measure_positions(x, special_BT, OutlierRule()).median_norm
    special_BT[:, 20:] = True
    for x_BTD in x.values():
        x_BTD[:, 20:] *= 1000
        x_BTD[:, 0] *= 1000
    found = measure_positions(x, special_BT, OutlierRule()).median_norm
    assert all(0.5 < found[name] / clean[name] < 2 for name in clean)


def test_the_share_of_the_variance_is_that_of_a_float64_computation():
    x, special_BT = sample()
    facts = measure_positions(x, special_BT, OutlierRule(first=0))
    x_ND = x["layers.1"].double().flatten(0, 1)
    squares_N = (x_ND - x_ND.mean(0)).square().sum(1)
    assert abs(facts.variance_share["layers.1"] - squares_N[2 * T + 7].item() / squares_N.sum().item()) < 1e-12
    assert facts.shares == {"special": 0.0, "first": 0.0, "norm": 1 / (B * T)}


def test_nan_at_a_position_changes_no_limit():
    x, special_BT = sample(factor=1.0)
    whole = measure_positions(x, special_BT, OutlierRule())
    x["layers.0"][3, 9] = float("nan")
    found = measure_positions(x, special_BT, OutlierRule())
    assert all(math.isfinite(limit) for limit in found.limit.values())
    assert abs(found.limit["layers.0"] / whole.limit["layers.0"] - 1) < 0.05
    assert all(0 <= share <= 1 for share in found.variance_share.values())


def test_without_a_bound_on_norms_none_is_left_out_by_its_norm():
    x, special_BT = sample()
    facts = measure_positions(x, special_BT, NO_OUTLIERS)
    assert not beyond(list(x.values()), list(facts.limit.values())).any()
    assert facts.shares == {"special": 0.0, "first": 0.0, "norm": 0.0}


# ---- in a reader


@pytest.fixture
def sinking():
    """A model in which token 9 has a hundred times longer embedding, and rows that hold it now and then."""
    model = tiny_model()
    model.get_input_embeddings().weight.data[9] *= 100
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(20, 200, (24, 32), generator=random)
    ids[::3, 5] = 9
    return model, TokenRows(ids.numpy().astype("uint16"))


def test_a_reader_leaves_out_the_first_position_and_the_sink_at_every_hookpoint(sinking):
    model, rows = sinking
    source = Harvester(model, rows, ["layers.0", "layers.1"])
    x_LND = source.read(range(24))
    assert x_LND.shape[1] == 24 * 31 - 8
    everything = Harvester(model, rows, ["layers.0", "layers.1"], outliers=NO_OUTLIERS).read([1])
    assert torch.equal(source.read([1]), everything[:, 1:])


def test_positions_say_which_are_left_out_and_published_keeps_all(sinking):
    model, rows = sinking
    _, out_BT = Harvester(model, rows, ["layers.0"]).read_positions([0, 1])
    assert out_BT.nonzero().tolist() == [[0, 0], [0, 5], [1, 0]]
    assert Harvester(model, rows, ["layers.0"], skip_special=False).read([0, 1]).shape[1] == 64


def test_held_out_rows_are_read_under_the_limits_of_the_training_rows(sinking):
    model, rows = sinking
    rows = TokenRows(rows.ids_RT, (), 0, TokenRows(rows.ids_RT[:3]))
    source = Harvester(model, rows, ["layers.0"])
    assert source.held_out().norm_limits == source.norm_limits


def test_what_was_left_out_can_be_told(sinking):
    model, rows = sinking
    facts = Harvester(model, rows, ["layers.0"]).position_facts
    assert facts.shares["norm"] == pytest.approx(8 / (24 * 32))
    assert facts.variance_share["layers.0"] > 0.5
