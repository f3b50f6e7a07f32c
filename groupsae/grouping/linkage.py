"""Groups by merging the two nearest again and again: complete linkage, ours and the published one."""

from __future__ import annotations

import heapq

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

from groupsae.errors import PartitionError
from groupsae.grouping.distances import Distances
from groupsae.partition import Partition


def complete(distances: Distances, num_groups: int) -> Partition:
    """The partition into `num_groups` by complete linkage on the distances themselves.

    Raises PartitionError for a number of groups that the layers do not allow.
    """
    return Partition.from_labels(distances.hookpoints, cut(_complete_tree(distances), len(distances), num_groups))


def published(distances: Distances, num_groups: int) -> Partition:
    """The partition that the published code makes; see `published_labels`."""
    return Partition.from_labels(distances.hookpoints, published_labels(distances, num_groups))


def published_labels(distances: Distances, num_groups: int) -> tuple[int, ...]:
    """The labels that the published code gives, numbers included.

    Theirs is scikit-learn's AgglomerativeClustering(linkage="complete") on the rows of the lower
    triangular matrix as feature vectors with Euclidean distances: not on the distances. Kept to
    reproduce published groups; use `complete` or `optimal` otherwise.
    Raises PartitionError for a number of groups that the layers do not allow.
    """
    features_LL = np.tril(distances.matrix, k=-1)
    tree = hierarchy.linkage(pdist(features_LL), method="complete") if len(distances) > 1 else np.empty((0, 4))
    return cut(tree, len(distances), num_groups)


def cut(tree: np.ndarray, num_layers: int, num_groups: int) -> tuple[int, ...]:
    """The label of each layer when the last merges of a tree are undone until `num_groups` are left.

    Groups are numbered as scikit-learn does: by their place in a binary heap of merges, newest first,
    after each undone merge was replaced in it by its two parts.
    """
    require_possible(num_groups, num_layers)
    heap = [-(num_layers + len(tree) - 1)]
    for _ in range(num_groups - 1):
        one, other = (int(part) for part in tree[-heap[0] - num_layers, :2])
        heapq.heappush(heap, -one)
        heapq.heapreplace(heap, -other)
    labels = [0] * num_layers
    for label, node in enumerate(heap):
        for layer in _layers_below(-node, tree, num_layers):
            labels[layer] = label
    return tuple(labels)


def require_possible(num_groups: int, num_layers: int) -> None:
    """Raises PartitionError unless 1 <= num_groups <= num_layers."""
    if not 1 <= num_groups <= num_layers:
        raise PartitionError(
            f"{num_groups} groups of {num_layers} layers are impossible; choose from 1 (one SAE for all) "
            f"to {num_layers} (one SAE per layer)."
        )


def _complete_tree(distances: Distances) -> np.ndarray:
    if len(distances) == 1:
        return np.empty((0, 4))
    return hierarchy.linkage(squareform(distances.matrix, checks=False), method="complete")


def _layers_below(node: int, tree: np.ndarray, num_layers: int) -> list[int]:
    pending, layers = [node], []
    while pending:
        node = pending.pop()
        if node < num_layers:
            layers.append(node)
        else:
            pending.extend(int(part) for part in tree[node - num_layers, :2])
    return layers
