import itertools
import math

import pytest
import torch

from groupsae.evaluation import dictionaries
from groupsae.evaluation.dictionaries import best_cosines, match_rows, mmcs, random_mmcs


def rows(count=30, width=8, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def naive_cosines(one_SD, other_SD):
    """Row by row, in float64."""
    one_SD, other_SD = one_SD.double(), other_SD.double()
    return torch.tensor(
        [[(a @ b / (a.norm() * b.norm())).item() if a.any() and b.any() else 0.0 for b in other_SD] for a in one_SD],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("at_once", [1, 70, 10**6])
def test_mmcs_equals_an_independent_float64_computation_in_blocks_of_any_size(monkeypatch, at_once):
    monkeypatch.setattr(dictionaries, "COSINES_AT_ONCE", at_once)
    one_SD, other_SD = rows(30), rows(23, seed=1)
    cosines = naive_cosines(one_SD, other_SD).abs()
    best_S, best_of_other_S = best_cosines(one_SD, other_SD)
    torch.testing.assert_close(best_S, cosines.amax(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(best_of_other_S, cosines.amax(0), rtol=1e-12, atol=0)
    assert mmcs(one_SD, other_SD) == pytest.approx(cosines.amax(1).mean().item(), rel=1e-12)
    assert mmcs(other_SD, one_SD) == pytest.approx(cosines.amax(0).mean().item(), rel=1e-12)


def test_a_dictionary_shares_all_with_itself_in_any_order_sign_and_length():
    one_SD = rows()
    order = torch.randperm(len(one_SD))
    signs = torch.randint(0, 2, (len(one_SD), 1)) * 2 - 1
    assert mmcs(one_SD, one_SD) == pytest.approx(1, abs=1e-12)
    assert mmcs(one_SD, 3 * signs * one_SD[order]) == pytest.approx(1, abs=1e-6)


def test_a_dictionary_that_holds_another_shares_all_of_it_but_not_the_reverse():
    small_SD = rows(5)
    large_SD = torch.cat([small_SD, rows(20, seed=3)])
    assert mmcs(small_SD, large_SD) == pytest.approx(1)
    assert mmcs(large_SD, small_SD) < 0.9


def test_mmcs_does_not_depend_on_the_order_of_rows_or_their_length():
    one_SD, other_SD = rows(), rows(seed=1)
    moved = mmcs(one_SD[torch.randperm(30)] * 7, other_SD[torch.randperm(30)])
    assert moved == pytest.approx(mmcs(one_SD, other_SD), rel=1e-6)


def test_rows_of_zeros_have_no_direction_and_count_as_zero():
    one_SD = torch.cat([rows(4), torch.zeros(4, 8)])
    assert mmcs(one_SD, one_SD) == pytest.approx(0.5)
    assert mmcs(torch.zeros(3, 8), one_SD) == 0
    assert match_rows(one_SD, one_SD).share == 0.5


def test_the_best_assignment_is_found():
    one_SD, other_SD = rows(6, 3), rows(6, 3, seed=1)
    cosines = naive_cosines(one_SD, other_SD)
    best = max(itertools.permutations(range(6)), key=lambda order: sum(cosines[i, j] for i, j in enumerate(order)))
    expected = torch.stack([cosines[i, j] for i, j in enumerate(best)])
    found = match_rows(one_SD, other_SD, threshold=0.5)
    assert found.method == "assignment" and found.pairs == 6
    assert found.mean_cosine == pytest.approx(expected.mean().item())
    assert found.share == (expected >= 0.5).double().mean().item()


@pytest.mark.parametrize("exact_up_to", [100, 0])
def test_all_rows_of_a_dictionary_in_another_order_are_matched(exact_up_to):
    one_SD = rows()
    found = match_rows(one_SD, one_SD[torch.randperm(30)], exact_up_to=exact_up_to)
    assert (found.share, found.pairs) == (1, 30)
    assert found.method == ("assignment" if exact_up_to else "mutual")


@pytest.mark.parametrize("exact_up_to", [100, 0])
def test_opposite_rows_are_not_matched(exact_up_to):
    one_SD = torch.eye(8)
    assert match_rows(one_SD, -one_SD, exact_up_to=exact_up_to).share == 0
    assert mmcs(one_SD, -one_SD) == 1


def test_each_row_is_used_once():
    one_SD = torch.tensor([[1.0, 0], [1.0, 0.01]])
    other_SD = torch.tensor([[1.0, 0], [0, 1.0]])
    assert match_rows(one_SD, other_SD).share == 0.5
    assert mmcs(one_SD, other_SD) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("at_once", [1, 100, 10**6])
def test_mutual_pairs_are_each_others_best(monkeypatch, at_once):
    monkeypatch.setattr(dictionaries, "COSINES_AT_ONCE", at_once)
    one_SD, other_SD = rows(30), rows(25, seed=1)
    cosines = naive_cosines(one_SD, other_SD)
    pairs = [(i, j) for i in range(30) for j in range(25) if cosines[i].argmax() == j and cosines[:, j].argmax() == i]
    found = match_rows(one_SD, other_SD, threshold=0.6, exact_up_to=24)
    assert found.pairs == len(pairs) > 0
    assert found.mean_cosine == pytest.approx(sum(cosines[pair].item() for pair in pairs) / len(pairs))
    assert found.share == sum(cosines[pair].item() >= 0.6 for pair in pairs) / 25


@pytest.mark.parametrize(("count", "width"), [(50, 4), (400, 32)])
def test_what_random_directions_share_is_predicted(count, width):
    drawn = [mmcs(rows(400, width, seed), rows(count, width, 100 + seed)) for seed in range(20)]
    assert random_mmcs(count, width) == pytest.approx(sum(drawn) / 20, rel=0.02)


@pytest.mark.parametrize(
    ("count", "width", "expected"), [(1, 2, 2 / math.pi), (1, 3, 1 / 2), (5, 3, 5 / 6), (5, 1, 1)], ids=str
)
def test_in_few_dimensions_what_random_directions_share_is_known(count, width, expected):
    assert random_mmcs(count, width) == pytest.approx(expected, rel=1e-3)
