import math

import numpy as np
import pytest
import torch

from groupsae.evaluation import firing
from groupsae.evaluation.firing import FiringSets, best_jaccards, spread, spreading
from groupsae.saes.base import Latents

TOKENS, WIDTH = 40, 15


def latents(seed, width=WIDTH, k=3, tokens=TOKENS):
    """Random active latents, some of value zero; the last three never fire."""
    random = torch.Generator().manual_seed(seed)
    indices_NK = torch.stack([torch.randperm(width - 3, generator=random)[:k] for _ in range(tokens)])
    values_NK = torch.rand(tokens, k, generator=random).sub(0.2).relu()
    return Latents(values_NK, indices_NK)


def sets_of(part, width=WIDTH, splits=(13,)):
    sets = FiringSets(width)
    for start, end in zip((0, *splits), (*splits, len(part.values_NK)), strict=True):
        sets.add(Latents(part.values_NK[start:end], part.indices_NK[start:end]))
    return sets.matrix()


def naive_jaccards(one_NS, other_NS):
    """Set by set."""
    sets = [[set(np.flatnonzero(column)) for column in fired.T] for fired in (one_NS, other_NS)]
    return np.array([[len(a & b) / len(a | b) if a | b else 0.0 for b in sets[1]] for a in sets[0]])


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
def test_jaccards_equal_those_of_the_sets_themselves(monkeypatch, at_once):
    monkeypatch.setattr(firing, "PAIRS_AT_ONCE", at_once)
    one, other = latents(0), latents(1, width=20, k=5)
    dense = [part.dense(width).numpy() > 0 for part, width in ((one, WIDTH), (other, 20))]
    expected = naive_jaccards(*dense)
    best_S, best_of_other_S = best_jaccards(sets_of(one), sets_of(other, 20))
    np.testing.assert_allclose(best_S, np.where(dense[0].any(0), expected.max(1), np.nan))
    np.testing.assert_allclose(best_of_other_S, np.where(dense[1].any(0), expected.max(0), np.nan))


def test_a_latent_that_never_fires_has_no_best_partner():
    best_S, _ = best_jaccards(sets_of(latents(0)), sets_of(latents(1)))
    assert np.isnan(best_S[-3:]).all() and not np.isnan(best_S[:-3]).any()


def test_an_sae_fires_as_it_does_itself_in_any_order_of_latents():
    part = latents(0)
    order = torch.randperm(WIDTH)
    moved = Latents(part.values_NK, order[part.indices_NK])
    best_S, best_of_other_S = best_jaccards(sets_of(part), sets_of(moved))
    assert np.nanmin(best_S) == np.nanmin(best_of_other_S) == 1


def test_firing_sets_do_not_depend_on_batches_and_leave_out_values_of_zero():
    part = latents(0)
    dense = part.dense(WIDTH).numpy() > 0
    for splits in ((), (1, 2, 39)):
        assert (sets_of(part, splits=splits).toarray().astype(bool) == dense.T).all()


def test_sets_of_no_token_are_empty():
    best_S, _ = best_jaccards(FiringSets(4).matrix(), FiringSets(5).matrix())
    assert np.isnan(best_S).all() and len(best_S) == 4


def test_spreading_is_none_at_one_layer_and_full_when_alike():
    counts_LS = torch.tensor([[5, 0, 3, 0], [0, 0, 3, 1], [0, 0, 3, 1]])
    entropy_S, mean_S = spread(counts_LS)
    assert entropy_S[[0, 2]].tolist() == pytest.approx([0, 1])
    assert entropy_S[3].item() == pytest.approx(math.log(2) / math.log(3))
    assert mean_S[[0, 2, 3]].tolist() == pytest.approx([0, 1, 1.5])
    assert entropy_S[1].isnan() and mean_S[1].isnan()


def test_spreading_equals_an_independent_computation_and_ignores_scale_and_order():
    counts_LS = torch.randint(0, 50, (4, 20), generator=torch.Generator().manual_seed(0))
    entropy_S, mean_S = spread(counts_LS)
    for latent, counts in enumerate(counts_LS.T.tolist()):
        shares = [count / sum(counts) for count in counts]
        naive = -sum(p * math.log(p) for p in shares if p) / math.log(4)
        assert entropy_S[latent].item() == pytest.approx(naive)
        assert mean_S[latent].item() == pytest.approx(sum(place * p for place, p in enumerate(shares)))
    torch.testing.assert_close(spread(7 * counts_LS.flip(0))[0], entropy_S)


def test_a_groups_spreading_sums_its_latents_up():
    counts_LS = torch.tensor([[4, 0, 2, 0], [0, 0, 2, 0], [0, 6, 2, 0]])
    found = spreading(counts_LS, ("a", "b", "c"))
    assert found.layers == ("a", "b", "c")
    assert found.entropy == pytest.approx(1 / 3) and found.mean_layer == pytest.approx(1)
    assert found.entropy_histogram == (2, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert found.layer_histogram == (1, 1, 1)
    assert found.one_layer_share == pytest.approx(2 / 3)
    assert found.firing_share == pytest.approx((6 / 16, 2 / 16, 8 / 16))
    assert found.silent == 1


def test_latents_that_never_fire_give_stated_values():
    found = spreading(torch.zeros(2, 5, dtype=torch.long), ("a", "b"))
    assert (found.entropy, found.mean_layer, found.one_layer_share, found.silent) == (None, None, None, 5)
    assert found.firing_share == (0, 0) and sum(found.entropy_histogram) == sum(found.layer_histogram) == 0
