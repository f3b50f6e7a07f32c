import json

import numpy as np
import pytest
from grouping_cases import as_distances

from groupsae.errors import HookpointError, PartitionError
from groupsae.grouping import criteria as quality
from groupsae.grouping.choose import METHODS, candidates, choose, fewest_below, group_layers, read_partition
from groupsae.partition import Partition

NAMES = tuple(f"layers.{layer}" for layer in range(5))
LINE = as_distances(np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0))) / 10)


@pytest.mark.parametrize("method", METHODS)
def test_the_fewest_groups_whose_amad_is_below_the_bound_are_taken(method):
    chosen = group_layers(LINE, method, max_amad=0.16)
    assert quality.amad(LINE, chosen) < 0.16
    fewer = candidates(LINE, method)[: len(chosen) - 1]
    assert all(quality.amad(LINE, partition) >= 0.16 for partition in fewer)


def test_an_amad_equal_to_the_bound_is_not_below_it():
    assert fewest_below([0.3, 0.2, 0.1, 0.0], 0.2) == 2


def test_asking_for_groups_overrides_the_bound():
    assert len(group_layers(LINE, groups=2, max_amad=0.01)) == 2


def test_candidates_are_one_for_each_number_of_groups():
    assert [len(partition) for partition in candidates(LINE, "optimal", "minimax")] == [1, 2, 3, 4, 5]


def test_choosing_a_number_of_groups_that_no_candidate_has_is_an_error():
    with pytest.raises(PartitionError, match="No candidate has 9 groups; there are candidates with 1, 2, 3, 4, 5"):
        choose(LINE, candidates(LINE, "equal"), groups=9)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_that_nothing_meets_is_an_error_that_names_the_smallest(bound):
    with pytest.raises(PartitionError, match=r"smallest above 0 is 0\.025"):
        group_layers(LINE, max_amad=bound)


def test_a_bound_that_no_candidate_meets_names_the_smallest():
    with pytest.raises(PartitionError, match=r"smallest is 0\.3"):
        fewest_below([0.5, 0.3], 0.2)


@pytest.mark.parametrize(("model", "groups"), [("pythia-160m", 6), ("pythia-410m", 9), ("pythia-1b", 6)])
def test_the_rule_on_published_amads_gives_the_published_number_of_groups(model, groups, groupings):
    entries = groupings[model]["hierarchical"]
    amads = [entries[str(number)]["amad"] for number in range(1, len(entries) + 1)]
    assert 1 + fewest_below(amads, 0.2) == groups == groupings[model]["G_hat_threshold_0.2"]


@pytest.mark.parametrize(("model", "groups"), [("pythia-160m", 6), ("pythia-1b", 6)])
def test_grouping_published_distances_gives_the_published_partition(model, groups, published, groupings):
    chosen = group_layers(published(model), method="published")
    expected = groupings[model]["hierarchical"][str(groups)]["groups"]
    assert chosen == Partition(tuple(tuple(f"layers.{layer}" for layer in group) for group in expected))


# ---- quality


def test_the_measures_of_a_partition_follow_their_definitions():
    partition = Partition((NAMES[:3], NAMES[3:4], NAMES[4:]))
    assert quality.amad(LINE, partition) == pytest.approx(0.2 / 3)
    assert quality.size_weighted_amad(LINE, partition) == pytest.approx(3 * 0.2 / 5)
    assert quality.largest_diameter(LINE, partition) == pytest.approx(0.2)
    assert quality.mean_angle(LINE, partition) == pytest.approx(2 * (0.1 + 0.1 + 0.2) / 3)


def test_the_mean_angle_is_the_sum_of_the_layers_proxies():
    partition = Partition((NAMES[:3], NAMES[3:4], NAMES[4:]))
    proxies = quality.layer_proxies(LINE, partition)
    assert proxies.tolist() == pytest.approx([0.8 / 9] * 3 + [0, 0])
    assert quality.mean_angle(LINE, partition) == pytest.approx(proxies.sum())


def test_singletons_have_no_diameter():
    for measure in (quality.amad, quality.size_weighted_amad, quality.largest_diameter, quality.mean_angle):
        assert measure(LINE, Partition.singletons(NAMES)) == 0


def test_the_quality_of_a_partition_of_other_layers_is_an_error():
    with pytest.raises(PartitionError, match=r"misses layers\.4"):
        quality.amad(LINE, Partition.singletons(NAMES[:4]))


# ---- partitions written by hand


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_partition_by_hand_may_jump_and_use_wildcards(tmp_path, suffix):
    groups = [["layers.0", "layers.4"], ["layers.[123]"]]
    path = tmp_path / f"mine.{suffix}"
    path.write_text(json.dumps({"groups": groups}) if suffix == "json" else f"groups = {json.dumps(groups)}\n")
    assert str(read_partition(path, NAMES)) == "[layers.0+4] [layers.1-3]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('groups = [["layers.0", "layers.1"]]', r"misses layers\.2"),
        ('groups = [["layers.*"], ["layers.0"]]', r"layers\.0 stand more than once"),
        ('groups = ["layers.0"]', "holds no partition"),
        ("groups = [[1, 2]]", "holds no partition"),
        ("other = 1", "holds no partition"),
        ("groups = [", "cannot be read as toml"),
        ("groups = [[]]", "at least one hookpoint"),
    ],
)
def test_a_partition_by_hand_that_is_none_is_an_error_that_names_the_file(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(PartitionError, match=rf"mine\.toml.*{message}"):
        read_partition(path, NAMES)


def test_a_partition_by_hand_of_unknown_layers_is_an_error(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('groups = [["layers.9"], ["layers.*"]]')
    with pytest.raises(HookpointError, match=r"'layers\.9' matches nothing"):
        read_partition(path, NAMES)


def test_a_missing_file_is_an_error_that_names_the_methods(tmp_path):
    with pytest.raises(PartitionError, match="optimal, complete, published, equal"):
        read_partition(tmp_path / "none.toml", NAMES)
