"""The best partition into contiguous groups, exactly, by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from groupsae.errors import ConfigError, unknown
from groupsae.grouping.distances import Distances
from groupsae.grouping.linkage import require_possible
from groupsae.partition import Partition


def optimal(distances: Distances, num_groups: int, objective: str = "mean-angle") -> Partition:
    """The partition into `num_groups` runs of neighboring layers with the lowest objective.

    Layers are neighbors in the order of `distances.hookpoints`. Objectives, with d the distances:

    - `mean-angle`: sum over groups of sum_{p,q in g} d(p, q) / |g|  (`quality.mean_angle`)
    - `minimax`: the largest distance inside any group; among equals, the lowest mean-angle
    - `size-weighted`: sum over groups of |g| max_g  (`quality.size_weighted_amad`)

    Exact: cost tables of all intervals in O(L^2), then best(G, j) = min_i best(G - 1, i) + cost(i, j) in
    O(G L^2). Plain AMAD is no objective: its optimum is one giant group and singletons.
    Raises PartitionError for a number of groups that the layers do not allow, ConfigError for an
    unknown objective.
    """
    require_possible(num_groups, len(distances))
    if objective not in OBJECTIVES:
        raise ConfigError(unknown("objective", objective, OBJECTIVES))
    cuts = OBJECTIVES[objective](distances.matrix, num_groups)
    names = distances.hookpoints
    return Partition(tuple(names[first:last] for first, last in pairwise(cuts)))


def _mean_angle(matrix_LL: np.ndarray, num_groups: int) -> list[int]:
    return _cheapest_cuts(_mean_angles(matrix_LL), num_groups, np.add)


def _size_weighted(matrix_LL: np.ndarray, num_groups: int) -> list[int]:
    return _cheapest_cuts(_diameters(matrix_LL) * _sizes(len(matrix_LL)), num_groups, np.add)


def _minimax(matrix_LL: np.ndarray, num_groups: int) -> list[int]:
    diameters = _diameters(matrix_LL)
    cuts = _cheapest_cuts(diameters, num_groups, np.maximum)
    largest = max(diameters[first, last] for first, last in pairwise(cuts))
    allowed = np.where(diameters <= largest, _mean_angles(matrix_LL), np.inf)
    return _cheapest_cuts(allowed, num_groups, np.add)


OBJECTIVES: dict[str, Callable[[np.ndarray, int], list[int]]] = {
    "mean-angle": _mean_angle,
    "minimax": _minimax,
    "size-weighted": _size_weighted,
}


def _cheapest_cuts(costs: np.ndarray, num_groups: int, join: np.ufunc) -> list[int]:
    """Where the groups begin, and L: cuts[g] to cuts[g + 1] is group g.

    `costs[i, j]` is the cost of layers i ... j - 1, infinite for i >= j; `join` adds a group's cost.
    """
    layers = len(costs) - 1
    best, came_from = costs[0], []
    for _ in range(num_groups - 1):
        through = join(best[:, None], costs)
        came_from.append(through.argmin(axis=0))
        best = through.min(axis=0)
    cuts = [layers]
    for previous in reversed(came_from):
        cuts.append(int(previous[cuts[-1]]))
    return [0, *reversed(cuts)]


def _sizes(layers: int) -> np.ndarray:
    """The number of layers of each interval (L + 1, L + 1): j - i; 1 where there is none."""
    edges = np.arange(layers + 1)
    return np.maximum(edges[None] - edges[:, None], 1)


def _is_interval(layers: int) -> np.ndarray:
    edges = np.arange(layers + 1)
    return edges[None] > edges[:, None]


def _mean_angles(matrix_LL: np.ndarray) -> np.ndarray:
    """The mean-angle cost of each interval, by prefix sums in two dimensions."""
    layers = len(matrix_LL)
    below = np.zeros((layers + 1, layers + 1))
    below[1:, 1:] = matrix_LL.cumsum(axis=0).cumsum(axis=1)
    corner = below.diagonal()
    total = corner[None] + corner[:, None] - below - below.T
    return np.where(_is_interval(layers), total / _sizes(layers), np.inf)


def _diameters(matrix_LL: np.ndarray) -> np.ndarray:
    """The largest distance in each interval: that of its two parts that leave one end out, or between the ends."""
    layers = len(matrix_LL)
    table = np.where(_is_interval(layers), 0.0, np.inf)
    for size in range(2, layers + 1):
        for first in range(layers - size + 1):
            last = first + size
            table[first, last] = max(table[first, last - 1], table[first + 1, last], matrix_LL[first, last - 1])
    return table
