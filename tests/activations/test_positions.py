"""Which positions are left out, and what a sample says of them."""

import torch

from groupsae.activations.positions import PositionRule, measure_positions

B, T, D = 4, 32, 8


def sample(sink=(2, 7), factor=100.0):
    """Activations of two hookpoints, at the second of which one position is large, and no special token."""
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, B, T, D, generator=random)
    second[sink] *= factor
    return {"layers.0": first, "layers.1": second}, torch.zeros(B, T, dtype=torch.bool)


def test_a_position_beyond_the_limit_at_one_hookpoint_is_left_out_at_all():
    x, special_BT = sample()
    facts = measure_positions(x, special_BT, PositionRule())
    out_BT = PositionRule().out(special_BT, list(x.values()), facts.limits(list(x)))
    assert out_BT[2, 7]
    assert out_BT[:, 0].all()
    assert out_BT.sum() == B + 1


def test_the_first_positions_and_special_tokens_are_left_out_whatever_their_norm():
    x, special_BT = sample(factor=1.0)
    special_BT[1, 5] = True
    out_BT = PositionRule(first=2).out(special_BT, list(x.values()), None)
    assert out_BT[:, :2].all()
    assert out_BT[1, 5]
    assert out_BT.sum() == 2 * B + 1


def test_as_published_nothing_is_left_out_and_special_leaves_out_special_tokens_alone():
    x, special_BT = sample()
    special_BT[1, 5] = True
    limits = measure_positions(x, special_BT, PositionRule()).limits(list(x))
    assert not PositionRule("nothing").out(special_BT, list(x.values()), limits).any()
    assert torch.equal(PositionRule("special").out(special_BT, list(x.values()), limits), special_BT)


def test_the_median_is_over_ordinary_positions():
    x, special_BT = sample(factor=1.0)
    clean = measure_positions(x, special_BT, PositionRule()).median_norm
    special_BT[:, 20:] = True
    for x_BTD in x.values():
        x_BTD[:, 20:] *= 1000
        x_BTD[:, 0] *= 1000
    found = measure_positions(x, special_BT, PositionRule()).median_norm
    assert all(0.5 < found[name] / clean[name] < 2 for name in clean)


def test_the_share_of_the_variance_is_that_of_a_float64_computation():
    x, special_BT = sample()
    facts = measure_positions(x, special_BT, PositionRule(first=0))
    x_ND = x["layers.1"].double().flatten(0, 1)
    squares_N = (x_ND - x_ND.mean(0)).square().sum(1)
    assert abs(facts.variance_share["layers.1"] - squares_N[2 * T + 7].item() / squares_N.sum().item()) < 1e-12
    assert facts.shares == {"special": 0.0, "first": 0.0, "norm": 1 / (B * T)}


def test_nan_at_a_position_changes_no_limit():
    x, special_BT = sample(factor=1.0)
    whole = measure_positions(x, special_BT, PositionRule())
    x["layers.0"][3, 9] = float("nan")
    found = measure_positions(x, special_BT, PositionRule())
    assert all(torch.isfinite(torch.tensor(list(found.limit.values()))))
    assert abs(found.limit["layers.0"] / whole.limit["layers.0"] - 1) < 0.05
    assert all(0 <= share <= 1 for share in found.variance_share.values())


def test_beside_a_rule_stands_the_opposite():
    assert PositionRule().other.leave_out == "nothing"
    assert PositionRule("special").other.leave_out == "nothing"
    assert PositionRule("nothing").other.leave_out == "outliers"
