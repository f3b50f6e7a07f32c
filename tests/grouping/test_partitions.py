"""Methods that make partitions, against brute force and against the published groups."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from grouping_cases import as_distances
from hypothesis import given, settings
from hypothesis import strategies as st

from groupsae.errors import ConfigError, PartitionError
from groupsae.grouping import criteria as quality
from groupsae.grouping.choose import METHODS, equal, make_partition
from groupsae.grouping.linkage import complete, published_labels
from groupsae.grouping.optimal import optimal
from groupsae.partition import Partition

MEASURES = {
    "mean-angle": quality.mean_angle,
    "minimax": quality.largest_diameter,
    "size-weighted": quality.size_weighted_amad,
}
methods = pytest.mark.parametrize("method", METHODS)


@st.composite
def random_distances(draw, most=8):
    layers = draw(st.integers(1, most))
    seed = draw(st.integers(0, 2**31))
    decimals = draw(st.sampled_from([1, 12]))
    return random_matrix(layers, seed, decimals)


def random_matrix(layers, seed, decimals=12):
    below = np.tril(np.random.default_rng(seed).random((layers, layers)).round(decimals), k=-1)
    return as_distances(below + below.T)


def contiguous_partitions(distances, groups):
    layers = len(distances)
    for inner in combinations(range(1, layers), groups - 1):
        yield Partition(tuple(distances.hookpoints[a:b] for a, b in pairwise((0, *inner, layers))))


@pytest.mark.parametrize("objective", MEASURES)
@settings(max_examples=25, deadline=None)
@given(distances=random_distances())
def test_no_contiguous_partition_beats_the_optimal_one(objective, distances):
    measure = MEASURES[objective]
    for groups in range(1, len(distances) + 1):
        best = min(measure(distances, partition) for partition in contiguous_partitions(distances, groups))
        found = optimal(distances, groups, objective)
        assert len(found) == groups
        assert measure(distances, found) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("objective", MEASURES)
def test_optimal_is_exact_for_ten_layers(objective):
    distances, measure = random_matrix(10, seed=1), MEASURES[objective]
    for groups in range(1, 11):
        best = min(measure(distances, partition) for partition in contiguous_partitions(distances, groups))
        assert measure(distances, optimal(distances, groups, objective)) == pytest.approx(best, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(distances=random_distances(most=7))
def test_minimax_takes_the_lowest_mean_angle_among_equals(distances):
    for groups in range(1, len(distances) + 1):
        found = optimal(distances, groups, "minimax")
        largest = quality.largest_diameter(distances, found)
        equals = [
            p for p in contiguous_partitions(distances, groups) if quality.largest_diameter(distances, p) <= largest
        ]
        best = min(quality.mean_angle(distances, partition) for partition in equals)
        assert quality.mean_angle(distances, found) == pytest.approx(best, abs=1e-12)


def test_fewer_groups_never_have_a_lower_optimum():
    distances = random_matrix(9, seed=3)
    for objective, measure in MEASURES.items():
        values = [measure(distances, optimal(distances, groups, objective)) for groups in range(1, 10)]
        assert (np.diff(values) <= 1e-12).all()


def test_two_blocks_of_like_layers_are_found_by_every_method_that_looks():
    matrix = np.full((5, 5), 0.4)
    matrix[:2, :2] = matrix[2:, 2:] = 0.1
    np.fill_diagonal(matrix, 0)
    for method in ("optimal", "complete", "published"):
        assert str(make_partition(as_distances(matrix), method, 2)) == "[layers.0-1] [layers.2-4]"


def test_complete_linkage_finds_layers_that_are_not_neighbors():
    matrix = np.full((3, 3), 0.4)
    matrix[0, 2] = matrix[2, 0] = 0.1
    np.fill_diagonal(matrix, 0)
    assert complete(as_distances(matrix), 2).groups == (("layers.0", "layers.2"), ("layers.1",))


@settings(max_examples=25, deadline=None)
@given(distances=random_distances())
def test_every_method_gives_exactly_as_many_groups_as_asked(distances):
    for method in METHODS:
        for groups in range(1, len(distances) + 1):
            partition = make_partition(distances, method, groups)
            assert len(partition) == groups
            partition.require_exactly(distances.hookpoints)


@methods
def test_groups_as_many_as_layers_are_singletons(method):
    distances = random_matrix(6, seed=0)
    assert make_partition(distances, method, 6) == Partition.singletons(distances.hookpoints)


@methods
@pytest.mark.parametrize("groups", [0, -1, 7])
def test_an_impossible_number_of_groups_is_an_error_that_names_the_range(method, groups):
    with pytest.raises(PartitionError, match=r"choose from 1 .* to 6"):
        make_partition(random_matrix(6, seed=0), method, groups)


def test_an_unknown_method_or_objective_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'optimal'"):
        make_partition(random_matrix(3, seed=0), "optimum", 2)
    with pytest.raises(ConfigError, match="Did you mean 'minimax'"):
        optimal(random_matrix(3, seed=0), 2, "minmax")


def test_equal_chunks_differ_by_one_at_most_and_the_longer_come_first():
    names = tuple(f"layers.{layer}" for layer in range(11))
    assert [len(group) for group in equal(names, 4).groups] == [3, 3, 3, 2]


def test_the_published_method_numbers_its_groups_as_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    for seed in range(20):
        distances = random_matrix(9, seed)
        for groups in range(1, 10):
            fitted = cluster.AgglomerativeClustering(n_clusters=groups, linkage="complete").fit(
                np.tril(distances.matrix)
            )
            assert published_labels(distances, groups) == tuple(fitted.labels_)


# ---- the published groups


def test_it_gives_the_fourteen_published_partitions_of_pythia_1b_with_their_labels(published, groupings):
    distances, expected = published("pythia-1b"), groupings["pythia-1b"]["hierarchical"]
    assert len(expected) == 14
    for groups, entry in expected.items():
        assert list(published_labels(distances, int(groups))) == entry["labels"]


def test_it_gives_the_ten_published_partitions_of_pythia_160m_with_their_labels(published, groupings):
    distances, expected = published("pythia-160m"), groupings["pythia-160m"]["hierarchical"]
    assert len(expected) == 10
    for groups, entry in expected.items():
        assert list(published_labels(distances, int(groups))) == entry["labels"]


@pytest.mark.parametrize("model", ["pythia-160m", "pythia-1b"])
def test_published_amads_and_maxima_come_out_of_the_published_matrices(model, published, groupings):
    distances = published(model)
    for entry in groupings[model]["hierarchical"].values():
        partition = partition_of(entry)
        assert quality.amad(distances, partition) == pytest.approx(entry["amad"], abs=5.5e-4)
        largest = quality.largest_diameter(distances, partition)
        assert largest == pytest.approx(entry["max_within_group_distance"], abs=5.5e-4)


@pytest.mark.parametrize("model", ["pythia-160m", "pythia-1b"])
def test_published_equal_chunks_and_their_amads_come_out(model, published, groupings):
    distances = published(model)
    for groups, entry in groupings[model]["sequential"].items():
        chunks = make_partition(distances, "equal", int(groups))
        assert chunks == partition_of(entry)
        assert quality.amad(distances, chunks) == pytest.approx(entry["amad"], abs=5.5e-4)


def partition_of(entry):
    return Partition(tuple(tuple(f"layers.{layer}" for layer in group) for group in entry["groups"]))
