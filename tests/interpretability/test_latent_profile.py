"""Numbers made of firings, against what they are by definition."""

import numpy as np
import pytest
from latent_cases import firings_of, random_values

from groupsae.interpretability import profile
from groupsae.interpretability.cofiring import most_together

POSITIONS = 60


def test_values_and_histograms():
    value_SN = random_values(7, POSITIONS, 0.4)
    found = firings_of(value_SN)
    assert np.allclose(profile.peaks(found), value_SN.max(1))
    means = [row[row > 0].mean() if row.any() else 0 for row in value_SN]
    assert np.allclose(profile.mean_values(found), means)
    counts = profile.histograms(found)
    for row, bins in zip(value_SN, counts, strict=True):
        if row.any():
            assert (bins == np.histogram(row[row > 0], profile.HISTOGRAM_BINS, (0, row.max()))[0]).all()
        else:
            assert not bins.any()


def test_tokens_by_their_share_of_the_values():
    value_SN = random_values(6, POSITIONS, 0.5)
    ids_N = np.random.default_rng(2).integers(0, 9, POSITIONS)
    token_id, share = profile.top_tokens(firings_of(value_SN), ids_N, 12)
    assert (token_id[0] == -1).all() and not share[0].any()
    for row, tokens, shares in zip(value_SN[1:], token_id[1:], share[1:], strict=True):
        sums = np.bincount(ids_N, weights=row, minlength=9) / row.sum()
        known = tokens >= 0
        assert known.sum() == (sums > 0).sum()
        assert np.allclose(sums[tokens[known]], shares[known], atol=1e-6)
        assert (np.diff(shares) <= 1e-7).all() and np.isclose(shares.sum(), 1)


def test_layers_share_the_tokens_that_they_share():
    layers = [random_values(5, POSITIONS, share, seed) for seed, share in enumerate((0.5, 0.3, 0.5))]
    layers[2][1] = layers[0][1]
    found = profile.layer_overlaps([firings_of(one) for one in layers], POSITIONS)
    for latent in range(5):
        for one in range(3):
            for other in range(3):
                a, b = layers[one][latent] > 0, layers[other][latent] > 0
                wanted = (a & b).sum() / (a | b).sum() if (a | b).any() else np.nan
                assert np.isclose(found[latent, one, other], wanted, equal_nan=True)
    assert found[1, 0, 2] == 1 and np.isnan(found[0]).all()


def test_one_layer_overlaps_itself():
    found = profile.layer_overlaps([firings_of(random_values(3, POSITIONS, 0.5))], POSITIONS)
    assert found.shape == (3, 1, 1) and np.isnan(found[0, 0, 0]) and (found[1:] == 1).all()


@pytest.mark.parametrize("most", [2, 20])
def test_latents_that_fire_together(most):
    value_SN = random_values(8, POSITIONS, 0.2)
    value_SN[3] = value_SN[5]
    other_id, index = most_together(firings_of(value_SN), most, POSITIONS)
    fires = value_SN > 0
    assert other_id[3, 0] == 5 and other_id[5, 0] == 3 and index[3, 0] == 1
    assert (other_id[0] == -1).all()
    for latent in range(8):
        jaccard = np.array([(fires[latent] & row).sum() / max((fires[latent] | row).sum(), 1) for row in fires])
        jaccard[latent] = 0
        assert np.allclose(index[latent][:7], np.sort(jaccard)[::-1][: min(most, 7)], atol=1e-6)
        for other, value in zip(other_id[latent], index[latent], strict=True):
            assert (other < 0 and value == 0) or np.isclose(jaccard[other], value)
