import json

import numpy as np
import pytest
from grouping_cases import as_distances

from groupsae.errors import PartitionError
from groupsae.grouping.distances import Distances

GOOD = np.array([[0.0, 0.2, 0.4], [0.2, 0.0, 0.3], [0.4, 0.3, 0.0]])


def changed(*entries):
    matrix = GOOD.copy()
    for p, q, value in entries:
        matrix[p, q] = value
    return matrix


def test_distances_survive_json():
    before = Distances(("layers.0", "layers.1", "layers.2"), GOOD, "angular", 7, GOOD / 100)
    after = Distances.from_json(json.loads(json.dumps(before.to_json())))
    assert after.to_json() == before.to_json()
    assert list(before.to_json()) == ["metric", "hookpoints", "matrix", "standard_error", "num_tokens"]


def test_distances_without_standard_errors_survive_json():
    assert Distances.from_json(as_distances(GOOD).to_json()).standard_error is None


def test_rounding_is_removed_from_a_matrix():
    distances = as_distances(changed((0, 1, 0.2 + 5e-7), (1, 1, 5e-7)))
    assert (distances.matrix == distances.matrix.T).all()
    assert not distances.matrix.diagonal().any()


def test_a_matrix_cannot_be_changed_later():
    with pytest.raises(ValueError, match="read-only"):
        as_distances(GOOD).matrix[0, 1] = 1


def test_the_distances_of_a_group_are_a_part_of_the_matrix():
    assert as_distances(GOOD).between(["layers.0", "layers.2"]).tolist() == [[0, 0.4], [0.4, 0]]


def test_a_group_with_an_unknown_layer_is_an_error():
    with pytest.raises(PartitionError, match=r"layers\.9; the matrix has layers\.0"):
        as_distances(GOOD).between(["layers.9"])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (GOOD[:2], "must be square"),
        ([[0, 1], [1]], "rows of equal length"),
        (changed((0, 1, 0.3)), "0.3 between layers.0 and layers.1 one way and 0.2 the other"),
        (changed((0, 1, np.nan), (1, 0, np.nan)), "not finite"),
        (changed((0, 1, np.inf), (1, 0, np.inf)), "not finite"),
        (changed((0, 1, -0.1), (1, 0, -0.1)), "negative"),
        (changed((2, 2, 1.0)), "distance to itself is 0"),
    ],
)
def test_a_matrix_that_is_no_distance_matrix_is_an_error(matrix, message):
    with pytest.raises(PartitionError, match=message):
        Distances(("layers.0", "layers.1", "layers.2"), matrix, "angular", 7)


def test_as_many_hookpoints_as_rows_are_needed():
    with pytest.raises(PartitionError, match="3 hookpoints but 2 are named"):
        Distances(("layers.0", "layers.1"), GOOD, "angular", 7)


def test_a_hookpoint_named_twice_is_an_error():
    with pytest.raises(PartitionError, match="different hookpoints"):
        Distances(("layers.0", "layers.0", "layers.1"), GOOD, "angular", 7)


def test_a_standard_error_of_another_shape_is_an_error():
    with pytest.raises(PartitionError, match="standard errors"):
        Distances(("layers.0", "layers.1", "layers.2"), GOOD, "angular", 7, GOOD[:2, :2])


def test_json_without_a_matrix_is_an_error():
    with pytest.raises(PartitionError, match="lack matrix"):
        Distances.from_json({"metric": "angular", "hookpoints": ["layers.0"], "num_tokens": 7})
