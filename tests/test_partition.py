import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupsae.errors import PartitionError
from groupsae.partition import Partition, group_name

NAMES = tuple(f"layers.{layer}" for layer in range(12))


def test_equal_divisions_are_equal_whatever_the_order():
    one = Partition((("layers.10", "layers.9"), ("layers.0",)))
    other = Partition((("layers.0",), ("layers.9", "layers.10")))
    assert one == other
    assert one.groups == (("layers.0",), ("layers.9", "layers.10"))


@given(st.lists(st.integers(0, 4), min_size=12, max_size=12))
def test_labels_and_groups_say_the_same(labels):
    partition = Partition.from_labels(NAMES, labels)
    together = [[a == b for b in labels] for a in labels]
    assert [[a == b for b in partition.labels] for a in partition.labels] == together
    assert Partition.from_labels(NAMES, partition.labels) == partition
    assert partition.hookpoints == NAMES


@given(st.lists(st.integers(0, 4), min_size=12, max_size=12))
def test_names_of_groups_differ_and_are_fit_for_folders(labels):
    names = Partition.from_labels(NAMES, labels).names
    assert len(set(names)) == len(names)
    assert not any("/" in name for name in names)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (("layers.2",), "layers.2"),
        (("layers.3", "layers.4", "layers.5"), "layers.3-5"),
        (("layers.0", "layers.4"), "layers.0+4"),
        (("layers.0", "layers.1", "layers.5"), "layers.0-1+5"),
        (("h.3.mlp", "h.4.mlp"), "h.3-4.mlp"),
        (("embed_in", "layers.0"), "embed_in+layers.0"),
        (("h.0.attn", "h.0.mlp"), "h.0.attn+h.0.mlp"),
    ],
)
def test_a_group_is_named_after_its_hookpoints(group, name):
    assert group_name(group) == name


def test_singletons_are_one_group_per_hookpoint():
    assert Partition.singletons(NAMES).groups == tuple((name,) for name in NAMES)


@pytest.mark.parametrize("groups", [(), ((),), (("layers.0",), ())])
def test_a_partition_has_no_empty_group(groups):
    with pytest.raises(PartitionError, match="at least one"):
        Partition(groups)


def test_a_hookpoint_in_two_groups_is_an_error_that_names_it():
    with pytest.raises(PartitionError, match=r"layers\.1 stand more than once"):
        Partition((("layers.0", "layers.1"), ("layers.1",)))


def test_a_label_for_each_hookpoint():
    with pytest.raises(PartitionError, match="3 hookpoints but 2 labels"):
        Partition.from_labels(NAMES[:3], [0, 1])


def test_asking_for_the_group_of_an_unknown_hookpoint_says_which_there_are():
    with pytest.raises(PartitionError, match=r"'layers\.9' is in no group; the partition has layers\.0, layers\.1\."):
        Partition.singletons(NAMES[:2]).group_of("layers.9")


def test_a_partition_of_other_hookpoints_says_what_it_misses_and_what_is_unknown():
    with pytest.raises(PartitionError, match=r"misses layers\.2 and names unknown layers\.9; .* exactly layers\.0"):
        Partition.singletons(("layers.0", "layers.9")).require_exactly(("layers.0", "layers.2"))
    assert Partition.singletons(NAMES).require_exactly(reversed(NAMES)) == Partition.singletons(NAMES)


@pytest.mark.parametrize("name", ["layer¹", "٣", "layers.٣", "layers." + "9" * 240])
def test_digits_of_any_kind_can_stand_in_a_name(name):
    assert Partition((("layers.1", name),)).hookpoints


def test_a_name_that_is_no_path_of_a_module_is_refused():
    with pytest.raises(PartitionError, match="more than 255 characters"):
        Partition((("layers." + "9" * 9999,),))
