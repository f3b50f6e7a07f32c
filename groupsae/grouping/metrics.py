"""The distances by name: every metric measures the same way, from a source to a `Distances`."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from groupsae.activations.source import ActivationSource
from groupsae.errors import ConfigError
from groupsae.grouping.angular import angular_distances
from groupsae.grouping.cka import cka_distances
from groupsae.grouping.matrix import Distances
from groupsae.grouping.moments import Progress
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
) -> Distances:
    """The distances of all pairs of hookpoints by the metric of this name; see the functions in `METRICS`.

    Raises ConfigError for an unknown metric.
    """
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no metric {metric!r}.{hint} Known are {', '.join(METRICS)}.")
    return METRICS[metric](source, num_tokens, seed=seed, until_stderr=until_stderr, progress=progress)
