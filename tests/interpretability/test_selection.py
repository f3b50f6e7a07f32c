"""Windows hold what they say: the strongest places, some of each quantile, and places of silence."""

import numpy as np
import pytest
from latent_cases import firings_of, random_values

from groupsae.interpretability.selection import NOT_SAMPLED, NOT_TOP, WindowRule, choose_windows

ROWS, LENGTH = 12, 20


def chosen(value_SN, rule, kept_RT=None, seed=0):
    kept_RT = np.ones((ROWS, LENGTH), dtype=bool) if kept_RT is None else kept_RT
    return choose_windows(firings_of(value_SN), kept_RT, rule, np.random.default_rng(seed))


@pytest.mark.parametrize("length", [1, 5, 8, 20])
@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_windows_hold_the_values_of_their_places(length, share):
    value_SN = random_values(9, ROWS * LENGTH, share)
    found = chosen(value_SN, WindowRule(length, 4, 3, 2, 3))
    value_SRT = value_SN.reshape(len(value_SN), ROWS, LENGTH)
    assert len(found.latent_W)
    for index, latent in enumerate(found.latent_W):
        first = found.first_W[index]
        assert 0 <= first <= LENGTH - length
        begin, end = found.start_W[index : index + 2]
        values = np.zeros(length)
        values[found.offset_V[begin:end]] = found.value_V[begin:end]
        assert np.allclose(values, value_SRT[latent, found.row_W[index], first : first + length])
        assert end > begin


@pytest.mark.parametrize("length", [4, 8])
def test_the_strongest_are_the_largest_values_of_different_cells(length):
    value_SN = random_values(9, ROWS * LENGTH, 0.3)
    found = chosen(value_SN, WindowRule(length, 5, 2, 1, 0))
    for latent in range(1, len(value_SN)):
        rows = value_SN[latent].reshape(ROWS, LENGTH)
        cells = [rows[:, start : start + length].max(1) for start in range(0, LENGTH, length)]
        largest = np.sort(np.concatenate(cells))[::-1][:5]
        of_latent = np.flatnonzero((found.latent_W == latent) & (found.rank_W != NOT_TOP))
        assert found.rank_W[of_latent].tolist() == [0, 1, 2, 3, 4]
        for index, wanted in zip(of_latent, largest, strict=True):
            begin, end = found.start_W[index : index + 2]
            assert np.isclose(found.value_V[begin:end], wanted).any()


def test_quantiles_are_those_of_all_windows():
    value_SN = np.zeros((1, ROWS * LENGTH))
    value_SN[0, ::LENGTH] = np.arange(1, ROWS + 1)  # one firing in each row
    found = chosen(value_SN, WindowRule(LENGTH, 1, 4, 3, 0))
    assert sorted(found.quantile_W) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for index, quantile in enumerate(found.quantile_W):
        assert (found.value_V[found.start_W[index]] - 1) // 3 == quantile
    fewer = chosen(value_SN, WindowRule(LENGTH, 2, 4, 1, 0))
    assert sorted(fewer.quantile_W[fewer.quantile_W != NOT_SAMPLED]) == [0, 1, 2, 3]
    assert (fewer.rank_W[:2] == [0, 1]).all() and (fewer.rank_W[2:] == NOT_TOP).all()


def test_silent_windows_have_no_firing_and_are_different_places():
    value_SN = random_values(9, ROWS * LENGTH, 0.05)
    kept_RT = np.random.default_rng(1).random((ROWS, LENGTH)) < 0.6
    kept_RT[3] = False
    found = chosen(value_SN * kept_RT.reshape(-1), WindowRule(5, 2, 2, 1, 6), kept_RT)
    value_SRT = (value_SN * kept_RT.reshape(-1)).reshape(len(value_SN), ROWS, LENGTH)
    places = list(zip(found.silent_latent, found.silent_row, found.silent_first, strict=True))
    assert len(set(places)) == len(places) and (found.silent_latent == 0).sum() == 6
    for latent, row, first in places:
        assert not value_SRT[latent, row, first : first + 5].any()
        assert kept_RT[row, first : first + 5].any()
        assert row != 3


def test_a_latent_that_fires_everywhere_has_no_silent_window():
    found = chosen(np.ones((1, ROWS * LENGTH)), WindowRule(5, 2, 2, 1, 6))
    assert not len(found.silent_latent) and len(found.latent_W)


def test_the_seed_decides():
    value_SN, rule = random_values(9, ROWS * LENGTH, 0.3), WindowRule(5, 2, 4, 1, 3)
    one, again, other = (chosen(value_SN, rule, seed=seed) for seed in (0, 0, 1))
    assert (one.row_W == again.row_W).all() and (one.silent_row == again.silent_row).all()
    assert len(one.row_W) != len(other.row_W) or (one.row_W != other.row_W).any()


def test_nothing_fires():
    found = chosen(np.zeros((3, ROWS * LENGTH)), WindowRule(5, 2, 4, 1, 2))
    assert not len(found.latent_W) and len(found.silent_latent) == 6
