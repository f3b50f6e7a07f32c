"""A suite in one line of numbers: what it costs and how good it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import fmean

from groupsae.partition import Partition
from groupsae.records import RunDirectory
from groupsae.report.data import Record, RunData, read_run
from groupsae.report.outlook import look_ahead


@dataclass(frozen=True)
class SuiteSummary:
    """Cost and quality of one suite. A value is None while the stage that measures it is missing.

    Means are over layers, each layer counted once. Costs are those of the suite trained alone: the
    language model once, and its own SAEs.
    """

    name: str
    """`baseline` (one SAE per layer) or `groups`."""
    num_saes: int
    num_layers: int
    mean_fvu: float | None = None
    """Fraction of variance unexplained, in [0, inf); 0 is perfect."""
    worst_fvu: float | None = None
    worst_layer: str | None = None
    """The layer with the largest FVU."""
    mean_cosine: float | None = None
    mean_delta_ce: float | None = None
    """Nats per token that the model loses when one layer is replaced by its reconstruction."""
    mean_ce_score: float | None = None
    """(CE_zero - CE_sae) / (CE_zero - CE_clean); 1 is perfect."""
    worst_delta_ce: float | None = None
    mean_kl: float | None = None
    """KL(clean || spliced), nats per token."""
    mean_kl_score: float | None = None
    """(KL_zero - KL) / KL_zero; 1 is perfect."""
    all_layers_delta_ce: float | None = None
    """Nats per token that the model loses when all layers are replaced at once."""
    all_layers_kl: float | None = None
    mean_l0: float | None = None
    mean_dead_share: float | None = None
    circuit_ceiling: float | None = None
    """What all latents together do of the model's tasks with the SAEs' errors removed, mean over tasks; 1 is all."""
    mean_concordance: float | None = None
    """How closely latents of each layer's own SAE are met by latents of this suite's (best Jaccard index of the
    tokens on which they fire), mean over layers that another SAE serves here; in [0, 1], 1 is the same."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals over rows of the values above, by name, where they are known."""
    changes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals, judged row by row, of how much larger values are than the first suite's."""
    mflop_per_token: float | None = None
    """C = A + T G: one forward of the language model and G dense SAE steps, per token (arXiv 2410.21508)."""
    total_pflop: float | None = None
    """`mflop_per_token` times the tokens each SAE saw."""
    own_mflop_per_token: float | None = None
    """The same by our own count of what is computed."""
    num_tokens: int | None = None
    """Tokens that each SAE was trained on."""
    memory_bytes: float | None = None
    """Predicted by the plan, for this suite trained alone."""
    seconds: float | None = None
    """Measured: the language model, this suite's SAE steps, and everything around them."""


def summarize(run: RunDirectory) -> list[SuiteSummary]:
    """One summary for each suite of the run, the baseline first; empty before layers are grouped."""
    return summarize_data(read_run(run))


def summarize_data(data: RunData) -> list[SuiteSummary]:
    """One summary for each suite of records that were read already."""
    return [_summarize(data, name, partition) for name, partition in data.partitions.items()]


def _summarize(data: RunData, name: str, partition: Partition) -> SuiteSummary:
    fvu = data.measured(name, "fvu")
    worst = max(fvu, key=fvu.__getitem__) if fvu else None
    cost = data.cost(partition)
    mflop = cost["total"] if cost else None
    tokens = data.train["num_tokens"] if data.train else None
    offer = look_ahead(data).of_size(len(partition))
    together = ((data.losses or {}).get("all_layers") or {}).get(name) or {}
    return SuiteSummary(
        name=name,
        num_saes=len(partition),
        num_layers=len(partition.hookpoints),
        mean_fvu=_mean(fvu.values()),
        worst_fvu=fvu[worst] if worst is not None else None,
        worst_layer=worst,
        mean_cosine=_mean(data.measured(name, "cosine").values()),
        mean_delta_ce=_mean(data.measured(name, "delta_ce").values()),
        mean_ce_score=_mean(data.measured(name, "ce_score").values()),
        worst_delta_ce=data.across(name, "delta_ce").get("worst"),
        mean_kl=_mean(data.measured(name, "kl").values()),
        mean_kl_score=_mean(data.measured(name, "kl_score").values()),
        all_layers_delta_ce=together.get("delta_ce"),
        all_layers_kl=together.get("kl"),
        mean_l0=_mean(data.measured(name, "l0").values()),
        mean_dead_share=_mean(data.measured(name, "dead_share").values()),
        circuit_ceiling=_mean(data.ceilings(name)),
        mean_concordance=_mean(data.concordances(name)),
        intervals=_intervals(data, name, together.get("intervals", {})),
        changes=_changes(data, name),
        mflop_per_token=mflop,
        total_pflop=mflop * tokens / 1e9 if mflop is not None and tokens is not None else None,
        own_mflop_per_token=offer.own_mflop if offer else None,
        num_tokens=tokens,
        memory_bytes=offer.memory_bytes if offer else None,
        seconds=_seconds(data, partition),
    )


_OVER_LAYERS = {
    "fvu": "mean_fvu",
    "cosine": "mean_cosine",
    "delta_ce": "mean_delta_ce",
    "ce_score": "mean_ce_score",
    "kl": "mean_kl",
    "kl_score": "mean_kl_score",
}
_TOGETHER = {"delta_ce": "all_layers_delta_ce", "kl": "all_layers_kl"}


def _intervals(data: RunData, name: str, together: Record) -> dict[str, tuple[float, float]]:
    found = {key: data.across(name, measure).get("interval") for measure, key in _OVER_LAYERS.items()}
    found |= {key: together.get(measure) for measure, key in _TOGETHER.items()}
    return {key: (low, high) for key, interval in found.items() if interval for low, high in [interval]}


def _changes(data: RunData, name: str) -> dict[str, tuple[float, float]]:
    found = {key: data.changed(name, measure).get("interval") for measure, key in _OVER_LAYERS.items()}
    together = (data.losses or {}).get("all_layers_differences", {}).get(name, {})
    found |= {key: together.get(measure, {}).get("interval") for measure, key in _TOGETHER.items()}
    return {key: (low, high) for key, interval in found.items() if interval for low, high in [interval]}


def _seconds(data: RunData, partition: Partition) -> float | None:
    if data.train is None:
        return None
    groups = data.train["groups"]
    if any(name not in groups for name in partition.names):
        return None
    shared = data.train["seconds"]
    steps = sum(groups[name]["seconds"] for name in partition.names)
    return shared.get("language model", 0.0) + shared.get("other", 0.0) + steps


def _mean(values: Collection[float]) -> float | None:
    return fmean(values) if values else None
