"""The parts of a plan that are calculated: GPUs that need not be at hand, and an activation cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from groupsae.config import RunConfig
from groupsae.partition import Group, group_name
from groupsae.planning.cache import cache_bytes, trainings_until_cache_pays
from groupsae.planning.on_gpus import GpuSetting, fewest_gpus
from groupsae.planning.pricing import Price, Pricing
from groupsae.planning.roofline import gpu_named
from groupsae.progress import say
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.plan import CachePlan, GpuPlan, RankPlan
from groupsae.units import format_bytes

CACHE_DTYPE = "bfloat16"
CUTTABLE = ("topk", "batchtopk", "matryoshka", "jumprelu")
"""Architectures whose dictionaries can be cut by latents."""


def gpu_setting(config: RunConfig) -> GpuSetting | None:
    """The GPUs that a config asks the price on; None where this machine is timed."""
    plan = config.plan
    if plan.gpu_name is None:
        return None
    return GpuSetting(
        gpu_named(plan.gpu_name),
        plan.gpus,
        plan.nodes,
        model_dtype=config.model.dtype,
        step_dtype="bfloat16" if config.train.precision == "bf16" else "float32",
        may_cut=config.sae.architecture in CUTTABLE,
    )


def describe_gpus(
    pricing: Pricing, price: Price, groups: Sequence[Group], candidates: Sequence[Candidate]
) -> GpuPlan | None:
    """The run on the GPUs asked for; None where this machine is timed. Says so where it does not fit."""
    setting, cost = pricing.gpus, price.on_gpu
    if setting is None or cost is None:
        return None
    mesh, fewest = cost.mesh, fewest_gpus(setting, pricing.gpu_run(groups), groups, price.ours)
    if not cost.fits:
        say(
            f"plan: warning: the run does not fit on {setting.num_gpus} {setting.gpu.title}: "
            f"{format_bytes(cost.busiest_memory.device)} are needed of {format_bytes(setting.usable_bytes)} usable. "
            + (f"It fits on {fewest} or more." if fewest else "It fits on no number of these.")
        )
    fitting = [each for each in candidates if each.cost.device_bytes <= setting.usable_bytes]
    return GpuPlan(
        name=setting.gpu.title,
        num_gpus=setting.num_gpus,
        num_nodes=setting.num_nodes,
        read_nanoseconds=1e9 * cost.read_per_token,
        step_nanoseconds={field.name: 1e9 * getattr(cost.step, field.name) for field in fields(cost.step)},
        seconds=mesh.seconds,
        overlapped_seconds=mesh.overlapped_seconds,
        memory_bytes=cost.busiest_memory.device,
        usable_bytes=setting.usable_bytes,
        fits=cost.fits,
        fewest_gpus=fewest,
        imbalance=mesh.plan.imbalance,
        useful_share=mesh.useful_share,
        overlapped_share=mesh.overlapped_share,
        array_share=mesh.array_share,
        array_seconds=mesh.array_seconds,
        cheapest_groups=_cheapest(candidates),
        cheapest_fitting_groups=_cheapest(fitting) if fitting else None,
        ranks=_ranks(price, tuple(dict.fromkeys(groups))),
    )


def _cheapest(candidates: Sequence[Candidate]) -> int:
    """The number of groups that takes the fewest seconds; of two, the larger."""
    return min(candidates, key=lambda each: (each.seconds, -each.num_groups)).num_groups


def _ranks(price: Price, groups: Sequence[Group]) -> tuple[RankPlan, ...]:
    mesh = price.on_gpu.mesh
    return tuple(
        RankPlan(
            groups=tuple(group_name(groups[group]) for group in mesh.plan.groups_of(rank)),
            rows_share=mesh.plan.rows[rank],
            train_seconds=work.train,
            read_seconds=work.read,
            exchange_seconds=work.exchange,
            received_bytes=work.received_bytes,
            memory_bytes=price.on_gpu.memory[rank].device,
        )
        for rank, work in enumerate(mesh.ranks)
    )


def plan_cache(pricing: Pricing, price: Price, disk_rate: float) -> CachePlan | None:
    """A cache of what the run reads: its bytes, and from how many trainings on it pays; None without rates."""
    model_seconds = _read_seconds(pricing, price)
    if model_seconds is None:
        return None
    run, tokens = pricing.footprint, int(price.ours.lm_tokens)
    size = cache_bytes(run.num_hookpoints, tokens, run.architecture.d_model, CACHE_DTYPE)
    disk_seconds = size / tokens / disk_rate
    return CachePlan(
        dtype=CACHE_DTYPE,
        num_tokens=tokens,
        size_bytes=size,
        disk_rate=disk_rate,
        trainings=trainings_until_cache_pays(
            model_seconds_per_token=model_seconds,
            write_seconds_per_token=disk_seconds,
            read_seconds_per_token=disk_seconds,
            cached_tokens=tokens,
        ),
    )


def _read_seconds(pricing: Pricing, price: Price) -> float | None:
    """Seconds per token of the language model, calculated or measured; all GPUs of a mesh read at once."""
    if price.on_gpu is not None:
        return price.on_gpu.read_per_token / pricing.gpus.num_gpus
    return pricing.rates.read_per_token if pricing.rates else None
