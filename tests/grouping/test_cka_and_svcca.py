import numpy as np
import pytest
import torch
from grouping_cases import FixedSource

from groupsae.activations.source import SyntheticSource
from groupsae.errors import ConfigError, NumericalError, TextError
from groupsae.grouping.cka import cka_distances, hsic_1
from groupsae.grouping.measure import METRICS, measure_distances
from groupsae.grouping.svcca import svcca_distances

metrics = pytest.mark.parametrize("metric", METRICS)


def related(tokens=4000, width=16, layers=3):
    """Layers that share ever less of one signal."""
    random = torch.Generator().manual_seed(0)
    signal = torch.randn(tokens, width, generator=random) * torch.linspace(3, 0.2, width)
    return torch.stack([signal + layer * torch.randn(tokens, width, generator=random) for layer in range(layers)])


@metrics
def test_every_metric_gives_symmetric_distances_between_zero_and_one(metric):
    matrix = measure_distances(metric, SyntheticSource(num_layers=4), 2000).matrix
    assert (matrix == matrix.T).all()
    assert matrix.min() == 0
    assert matrix.max() <= 1


@metrics
def test_every_metric_puts_a_layer_read_twice_at_distance_zero(metric):
    x_ND = related(layers=1)[0]
    assert measure_distances(metric, FixedSource(torch.stack([x_ND, x_ND])), 4000).matrix.max() < 1e-6


@metrics
def test_every_metric_ignores_scale_and_shift(metric):
    x_LND = related()
    moved_LND = x_LND * torch.tensor([1.0, 20.0, 0.1])[:, None, None] + torch.tensor([0.0, 50.0, -3.0])[:, None, None]
    before, after = (measure_distances(metric, FixedSource(x), 4000).matrix for x in (x_LND, moved_LND))
    np.testing.assert_allclose(after, before, atol=1e-4)


@metrics
def test_every_metric_orders_layers_by_what_they_share(metric):
    matrix = measure_distances(metric, FixedSource(related()), 4000).matrix
    assert matrix[0, 1] < matrix[0, 2]


@metrics
def test_every_metric_names_a_layer_that_is_not_finite(metric):
    x_LND = related()
    x_LND[2, 5, 3] = float("nan")
    with pytest.raises(NumericalError, match=r"layers\.2"):
        measure_distances(metric, FixedSource(x_LND), 4000)


@pytest.mark.parametrize("metric", ["cka", "svcca"])
def test_a_layer_that_never_varies_is_like_no_other(metric):
    x_LND = related(layers=2)
    x_LND[1] = 1.0
    assert measure_distances(metric, FixedSource(x_LND), 4000).matrix[0, 1] == 1


@pytest.mark.parametrize("metric", ["cka", "svcca"])
def test_layers_that_share_nothing_are_at_distance_one(metric):
    x_LND = torch.randn(2, 8000, 16, generator=torch.Generator().manual_seed(0))
    assert measure_distances(metric, FixedSource(x_LND), 8000).matrix[0, 1] > 0.98


def test_an_unknown_metric_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'angular'"):
        measure_distances("angulr", SyntheticSource(), 100)


def test_hsic_equals_its_definition_over_four_different_tokens():
    """Song et al. 2012: a mean over all ordered quadruples of different tokens."""
    u_LnD = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    k, m = (torch.bmm(u_LnD, u_LnD.transpose(1, 2))).double().numpy()
    total, count = 0.0, 0
    for i, j, q, r in np.ndindex(7, 7, 7, 7):
        if len({i, j, q, r}) == 4:
            total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
            count += 1
    assert hsic_1(u_LnD)[0, 1] == pytest.approx(total / count, rel=1e-6)


def test_cka_equals_the_ratio_of_whole_covariances_for_many_tokens():
    x_LND = related(tokens=20000)
    u_LND = (x_LND - x_LND.mean(dim=1, keepdim=True)).double()
    cross = np.array([[(a.T @ b).square().sum().item() for b in u_LND] for a in u_LND])
    whole = 1 - cross / np.sqrt(np.outer(cross.diagonal(), cross.diagonal()))
    np.testing.assert_allclose(cka_distances(FixedSource(x_LND), 20000).matrix, whole, atol=0.01)


def test_cka_has_a_standard_error_and_stops_by_it():
    source = FixedSource(related(tokens=8000))
    measured = cka_distances(source, 8000)
    assert 0 < measured.standard_error[0, 1] < 0.1
    assert cka_distances(source, 8000, until_stderr=0.5).num_tokens == 20 * 40


def test_cka_of_three_tokens_is_an_error():
    with pytest.raises(TextError, match="at least 4 tokens"):
        cka_distances(SyntheticSource(), 3)


def test_svcca_does_not_change_when_a_layer_is_turned():
    x_LND = related()
    rotation_DD = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    turned_LND = torch.stack([x_LND[0], x_LND[1] @ rotation_DD, x_LND[2]])
    before, after = (svcca_distances(FixedSource(x), 4000).matrix for x in (x_LND, turned_LND))
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_svcca_equals_canonical_correlations_of_the_leading_directions():
    x_LND = related()
    whitened = []
    for x_ND in x_LND.double().numpy():
        left, _, _ = np.linalg.svd(x_ND - x_ND.mean(axis=0), full_matrices=False)
        whitened.append(left[:, :4])
    expected = 1 - np.square(whitened[0].T @ whitened[1]).sum() / 4
    assert svcca_distances(FixedSource(x_LND), 4000).matrix[0, 1] == pytest.approx(expected, abs=1e-5)


def test_svcca_of_few_tokens_is_an_error():
    with pytest.raises(ConfigError, match="needs 40 tokens or more"):
        svcca_distances(SyntheticSource(), 30)


def test_svcca_cannot_stop_at_a_standard_error():
    with pytest.raises(ConfigError, match="no standard error"):
        svcca_distances(SyntheticSource(), 300, until_stderr=0.1)
