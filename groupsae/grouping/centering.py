"""Centering for a distance: by the exact mean of each hookpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource
from groupsae.activations.stats import ActivationStats, measure_stats
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import ConfigError

Progress = Callable[[int], None]


class Centering:
    """Subtracts each hookpoint's mean in float32, as exactly as float64 would.

    The mean is split into a float32 part and what that part misses, so that a mean much larger
    than what varies costs no digits.
    """

    def __init__(self, mean_LD: Tensor, device: torch.device) -> None:
        coarse_LD = mean_LD.float()
        self._coarse_L1D = coarse_LD[:, None].to(device)
        self._fine_L1D = (mean_LD - coarse_LD.double()).float()[:, None].to(device)

    def __call__(self, x_LnD: Tensor) -> Tensor:
        """The centered activations (L, n, D), float32."""
        return (x_LnD.float() - self._coarse_L1D).sub_(self._fine_L1D)


def require_reachable(until_stderr: float | None) -> None:
    """Raises ConfigError for a standard error that no measurement can reach."""
    if until_stderr is not None and not until_stderr > 0:
        raise ConfigError(f"until_stderr = {until_stderr}; it must be positive, such as 0.002, or left out.")


def stats_for(
    source: ActivationSource,
    num_tokens: int,
    seed: int,
    stats: ActivationStats | None,
    progress: Progress | None,
    ranks: Ranks = ALONE,
) -> ActivationStats:
    """The statistics that a distance centers by: those given, or measured now.

    Raises ConfigError for statistics of other hookpoints or of less text than asked for.
    """
    if stats is None:
        return measure_stats(source, num_tokens, seed, progress=progress, ranks=ranks)
    if stats.hookpoints != source.hookpoints:
        raise ConfigError(
            f"The statistics are of {', '.join(stats.hookpoints)}, the source reads {', '.join(source.hookpoints)}."
        )
    return stats
