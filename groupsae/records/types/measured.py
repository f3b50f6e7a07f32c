"""What evaluations of suites have in common: numbers per layer, over layers, and differences between suites."""

from __future__ import annotations

from groupsae.records.types.record import RecordPart

Interval = tuple[float, float]
"""The ends of a 95 % interval."""


class OverLayers(RecordPart):
    """A metric over the layers of a suite or group; None where it is undefined."""

    mean: float | None
    interval: Interval | None = None
    worst: float | None = None
    worst_layer: str | None = None


class Difference(RecordPart):
    """How much larger a metric's mean is than that of the suite compared with."""

    mean: float
    interval: Interval | None = None


class ReconstructionMetrics(RecordPart):
    """How well an SAE reconstructs one hookpoint (docs/metrics.md)."""

    fvu: float | None
    explained_variance_per_token: float | None
    cosine: float | None
    l0: float | None
    l1: float | None
    l2_ratio: float | None
    relative_reconstruction_bias: float | None
    dead_share: float | None
    silent_share: float | None
    dense_share: float | None
    density: tuple[int, ...]
    """Latents by firing rate, between the record's `density_edges`."""
    intervals: dict[str, Interval]


class LossMetrics(RecordPart):
    """What splicing reconstructions into the language model costs (docs/metrics.md)."""

    ce: float | None
    delta_ce: float | None
    kl: float | None
    ce_score: float | None
    kl_score: float | None
    ce_score_mean: float | None
    kl_score_mean: float | None
    intervals: dict[str, Interval]


class AblatedLoss(RecordPart):
    """The model with activations set to zero, or to their mean: nats per token."""

    ce_zero: float
    kl_zero: float
    ce_mean: float
    kl_mean: float
