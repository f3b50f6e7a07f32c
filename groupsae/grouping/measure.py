"""The distances by name: every metric measures the same way, from a source to a `Distances`."""

from __future__ import annotations

from collections.abc import Callable

from groupsae.activations.source import ActivationSource
from groupsae.activations.stats import ActivationStats
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import ConfigError, unknown
from groupsae.grouping.angular import angular_distances
from groupsae.grouping.centering import Progress
from groupsae.grouping.cka import cka_distances
from groupsae.grouping.distances import Distances
from groupsae.grouping.svcca import svcca_distances

METRICS: dict[str, Callable[..., Distances]] = {
    "angular": angular_distances,
    "cka": cka_distances,
    "svcca": svcca_distances,
}


def measure_distances(
    metric: str,
    source: ActivationSource,
    num_tokens: int,
    seed: int = 0,
    until_stderr: float | None = None,
    progress: Progress | None = None,
    stats: ActivationStats | None = None,
    ranks: Ranks = ALONE,
) -> Distances:
    """The distances of all pairs of hookpoints by the metric of this name; see the functions in `METRICS`.

    `stats` are those of the same tokens (`measure_stats` with this source, `num_tokens` and seed), if they were
    measured before; without them, one more pass over the text measures them. Several `ranks` share the reading, and all
    get the same bits as one process does. Raises ConfigError for an unknown metric.
    """
    if metric not in METRICS:
        raise ConfigError(unknown("metric", metric, METRICS))
    return METRICS[metric](
        source, num_tokens, seed=seed, until_stderr=until_stderr, progress=progress, stats=stats, ranks=ranks
    )
