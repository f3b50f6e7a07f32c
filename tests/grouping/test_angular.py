import numpy as np
import pytest
import scipy.stats
import torch
from grouping_cases import FixedSource

from groupsae.activations import stats
from groupsae.activations.source import SyntheticSource, stream
from groupsae.errors import ConfigError, NumericalError, TextError
from groupsae.grouping import angular
from groupsae.grouping.angular import angular_distances


def naive(source, num_tokens, seed=0):
    """The definition: a float64 loop over pairs and tokens."""
    x_LND = torch.cat(list(stream(source, num_tokens, seed)), dim=1).double().numpy()
    u_LND = x_LND - x_LND.mean(axis=1, keepdims=True)
    layers = len(u_LND)
    matrix = np.zeros((layers, layers))
    for p in range(layers):
        for q in range(layers):
            if p == q:
                continue
            for a, b in zip(u_LND[p], u_LND[q], strict=True):
                cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
                matrix[p, q] += np.arccos(np.clip(cosine, -1, 1)) / np.pi
    return matrix / u_LND.shape[1]


def test_distances_equal_a_float64_loop_over_pairs_and_tokens():
    source = SyntheticSource(num_layers=4, num_rows=20)
    measured = angular_distances(source, 600)
    assert measured.num_tokens == 600
    np.testing.assert_allclose(measured.matrix, naive(source, 600), atol=1e-6)


def test_a_mean_far_larger_than_what_varies_costs_no_precision():
    random = torch.Generator().manual_seed(0)
    x_LND = torch.randn(3, 200, 8, generator=random) + 1000 * torch.randn(3, 1, 8, generator=random)
    source = FixedSource(x_LND)
    np.testing.assert_allclose(angular_distances(source, 200).matrix, naive(source, 200), atol=1e-6)


def test_the_distance_of_nearly_equal_layers_is_not_lost_in_rounding():
    random = torch.Generator().manual_seed(0)
    x_ND = torch.randn(200, 64, generator=random)
    source = FixedSource(torch.stack([x_ND, x_ND + 1e-3 * torch.randn(200, 64, generator=random), -x_ND]))
    np.testing.assert_allclose(angular_distances(source, 200).matrix, naive(source, 200), atol=1e-6)


def test_a_layer_read_twice_is_at_distance_zero():
    x_ND = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    assert angular_distances(FixedSource(torch.stack([x_ND, x_ND])), 100).matrix.max() < 1e-7


def test_distances_do_not_change_with_scale_shift_or_a_common_rotation():
    random = torch.Generator().manual_seed(0)
    x_LND = torch.randn(3, 200, 8, generator=random)
    rotation_DD = torch.linalg.qr(torch.randn(8, 8, generator=random)).Q
    moved_LND = (x_LND @ rotation_DD) * torch.tensor([1.0, 10.0, 0.1])[:, None, None] + 5
    before, after = (angular_distances(FixedSource(x), 200).matrix for x in (x_LND, moved_LND))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_the_matrix_is_exactly_symmetric_with_a_zero_diagonal():
    matrix = angular_distances(SyntheticSource(num_layers=5, num_rows=16), 300).matrix
    assert (matrix == matrix.T).all()
    assert not matrix.diagonal().any()


def test_layers_that_drifted_further_apart_are_further_apart():
    matrix = angular_distances(SyntheticSource(num_layers=5), 2000).matrix
    assert (np.diff(matrix[0]) > 0).all()


def test_distances_do_not_depend_on_the_size_of_the_blocks(monkeypatch):
    source = SyntheticSource(num_layers=4, num_rows=16)
    whole = angular_distances(source, 400)
    monkeypatch.setitem(stats._ELEMENTS, "cpu", 1000)
    np.testing.assert_allclose(angular_distances(source, 400).matrix, whole.matrix, atol=1e-8)


def test_a_token_at_the_mean_counts_as_a_right_angle():
    x_LND = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])
    measured = angular_distances(FixedSource(x_LND, row_tokens=3), 3)
    assert measured.matrix[0, 1] == pytest.approx(0.5 / 3)


def test_a_layer_that_never_varies_is_at_a_right_angle_to_all():
    x_LND = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0))
    x_LND[1] = 3.0
    assert angular_distances(FixedSource(x_LND), 40).matrix[0, 1] == pytest.approx(0.5)


def test_the_standard_error_is_the_spread_of_repeated_measurements():
    means, errors = [], []
    for seed in range(40):
        measured = angular_distances(SyntheticSource(num_layers=2, num_rows=128, seed=3), 1024, seed=seed)
        means.append(measured.matrix[0, 1])
        errors.append(measured.standard_error[0, 1])
    # Quarters of one text are drawn without repetition, which narrows the spread by sqrt(1 - 1/4).
    assert np.mean(errors) == pytest.approx(np.std(means) / 0.75**0.5, rel=0.5)


class Documents(FixedSource):
    """Two layers of 2 numbers, in documents of 8 rows: how far the layers are apart differs from document to document.

    `known` says whether the source tells which rows are of one document.
    """

    def __init__(self, seed, *, known, documents=24):
        random = torch.Generator().manual_seed(seed)
        angle_N = 0.6 + 0.1 * torch.randn(documents, generator=random).repeat_interleave(8 * 10)
        angle_N += 0.1 * torch.randn(angle_N.shape, generator=random)
        turn_N = 6.2832 * torch.rand(angle_N.shape, generator=random)
        layers = [torch.stack([(turn_N + by).cos(), (turn_N + by).sin()], 1) for by in (0, angle_N)]
        super().__init__(torch.stack(layers), batch_rows=48)
        if known:
            self.documents = lambda rows: torch.tensor(rows) // 8


def test_intervals_by_document_hold_the_distance_where_those_by_row_do_not():
    held = {True: 0, False: 0}
    truth, width = 0.6 / np.pi, scipy.stats.t.ppf(0.975, 23)
    for seed in range(100):
        for known in held:
            measured = angular_distances(Documents(seed, known=known), 10**6)
            held[known] += abs(measured.matrix[0, 1] - truth) < width * measured.standard_error[0, 1]
    assert held[False] < 75
    assert 89 < held[True] < 100


def test_more_documents_than_clusters_are_kept_apart_give_the_same_error(monkeypatch):
    source = Documents(0, known=True, documents=240)
    apart = angular_distances(source, 10**6)
    monkeypatch.setattr(angular, "MAX_CLUSTERS", 60)
    together = angular_distances(source, 10**6)
    np.testing.assert_allclose(together.matrix, apart.matrix, atol=1e-12)
    assert together.standard_error[0, 1] == pytest.approx(apart.standard_error[0, 1], rel=0.3)


def test_few_documents_end_no_measurement_early():
    source = Documents(0, known=True, documents=angular.MIN_CLUSTERS - 1)
    assert angular_distances(source, 10**6, until_stderr=0.5).num_tokens == source.num_rows * 10
    longer = Documents(0, known=True, documents=40)
    assert angular_distances(longer, 10**6, until_stderr=0.5).num_tokens < longer.num_rows * 10


def test_one_document_has_no_standard_error():
    assert angular_distances(Documents(0, known=True, documents=1), 10**6).standard_error is None


def test_measuring_stops_once_the_standard_error_is_small_enough():
    source = SyntheticSource(num_layers=3)
    stopped = angular_distances(source, 8000, until_stderr=0.05)
    assert stopped.num_tokens == 2 * 8 * 32
    assert stopped.standard_error.max() < 0.05
    assert angular_distances(source, 8000, until_stderr=1e-9).num_tokens == 8000


def test_progress_tells_each_token_of_both_passes():
    told = []
    angular_distances(SyntheticSource(), 1000, progress=told.append)
    assert sum(told) == 2000


def test_the_same_seed_gives_the_same_distances():
    one, other = (angular_distances(SyntheticSource(), 500, seed=4) for _ in range(2))
    assert (one.matrix == other.matrix).all()


def test_one_hookpoint_has_a_matrix_of_one_zero():
    assert angular_distances(SyntheticSource(num_layers=1), 3000, until_stderr=0.1).matrix.tolist() == [[0]]


def test_bfloat16_activations_are_measured():
    x_LND = torch.randn(2, 100, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    source = FixedSource(x_LND)
    np.testing.assert_allclose(angular_distances(source, 100).matrix, naive(source, 100), atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_activation_that_is_not_finite_is_an_error_that_names_the_layer(bad):
    x_LND = torch.zeros(3, 40, 4)
    x_LND[1, 7, 2] = bad
    with pytest.raises(NumericalError, match=r"at layers\.1 hold"):
        angular_distances(FixedSource(x_LND), 40)


def test_no_tokens_at_all_is_an_error():
    with pytest.raises(ConfigError, match="at least 1 token"):
        angular_distances(SyntheticSource(), 0)
    all_skipped = FixedSource(torch.zeros(2, 40, 4))
    all_skipped.row_tokens = 0
    with pytest.raises(TextError, match="no tokens"):
        angular_distances(all_skipped, 100)


def test_a_standard_error_of_zero_cannot_be_asked_for():
    with pytest.raises(ConfigError, match="must be positive"):
        angular_distances(SyntheticSource(), 100, until_stderr=0.0)
