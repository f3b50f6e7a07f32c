"""How well a partition fits the distances: one definition for each number."""

from __future__ import annotations

import numpy as np

from groupsae.grouping.distances import Distances
from groupsae.partition import Partition


def diameters(distances: Distances, partition: Partition) -> np.ndarray:
    """The largest distance inside each group, in the partition's order; 0 for a group of one.

    Raises PartitionError if the partition does not divide exactly the measured hookpoints.
    """
    partition.require_exactly(distances.hookpoints)
    return np.array([distances.between(group).max() for group in partition.groups])


def amad(distances: Distances, partition: Partition) -> float:
    """Mean over groups of the largest distance inside the group (Group-SAE's AMAD; arXiv 2410.21508).

    Groups of one count 0, so splitting off singletons lowers it: report it beside the other measures,
    never minimize it over partitions with equally many groups.
    """
    return float(diameters(distances, partition).mean())


def size_weighted_amad(distances: Distances, partition: Partition) -> float:
    """Mean over layers of the largest distance inside the layer's group: sum |g| max_g / sum |g|."""
    return float(np.average(diameters(distances, partition), weights=[len(group) for group in partition.groups]))


def largest_diameter(distances: Distances, partition: Partition) -> float:
    """The largest distance between any two layers that share a group."""
    return float(diameters(distances, partition).max())


def mean_angle(distances: Distances, partition: Partition) -> float:
    """Sum over groups of sum_{p,q in g} d(p, q) / |g|, over ordered pairs, a layer with itself included.

    The sum of `layer_proxies`: divided by the number of layers it is their mean.
    """
    return float(layer_proxies(distances, partition).sum())


def layer_proxies(distances: Distances, partition: Partition) -> np.ndarray:
    """The mean-angle proxy of each layer (L,), in the order of `distances.hookpoints`.

    That of its group: sum_{p,q in g} d(p, q) / |g|^2, the mean distance between two of its members drawn
    with repetition. 0 in a group of one. What sharing an SAE costs a layer grows as a power of it.
    """
    partition.require_exactly(distances.hookpoints)
    within = {group: float(distances.between(group).mean()) for group in partition.groups}
    return np.array([within[partition.group_of(hookpoint)] for hookpoint in distances.hookpoints])
