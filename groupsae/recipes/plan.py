"""The plan stage: what every partition would cost and give, and which one is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from groupsae.config import SAEConfig
from groupsae.errors import ConfigError, FitError
from groupsae.estimate import Estimate
from groupsae.grouping.choose import equal
from groupsae.grouping.distances import Distances
from groupsae.models import pick_device
from groupsae.partition import Partition
from groupsae.planning.fvu_law import FvuLaw, Option, cheapest_within, compute_optimal
from groupsae.planning.memory import Available, Footprint, require_fits
from groupsae.planning.pricing import Price, Pricing, Rates, available, union
from groupsae.planning.published import predict_excess
from groupsae.planning.sweep import fewest_passes, in_turn, price_together
from groupsae.progress import say
from groupsae.recipes.context import RunContext
from groupsae.recipes.gpu_plan import describe_gpus, gpu_setting, plan_cache
from groupsae.recipes.group import read_distances
from groupsae.recipes.pilot import proxies_of, run_pilot
from groupsae.recipes.suites import distinct_groups, suites_of, with_baseline
from groupsae.records.types.candidate import Candidate, Cost, TokenFlops
from groupsae.records.types.partition import PartitionRecord
from groupsae.records.types.plan import ComputeOptimal, PlanRecord, StepRates
from groupsae.records.types.suites import suite_groups
from groupsae.training.timing import time_steps
from groupsae.units import format_bytes

PILOT_EVAL_TOKENS = 8192
ENOUGH_BATCHES = 8
"""Batches that a shuffle buffer should hold where every layer of a token is trained on."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def plan(ctx: RunContext) -> list[str]:
    """Prices and predictions for every candidate of every method, and the choice: `plan.json`.

    Without distances (a model whose weights are not at hand) equal chunks are priced. Raises
    ConfigError if nothing meets the budget; FitError, with the plan written, if the run does not fit.
    """
    config = ctx.run.config
    _advise_on_layers_per_token(ctx)
    considered = _considered(ctx)
    pricing = pricing_of(ctx, config.sae, timed=True)
    quality = _quality(ctx, considered.choice)
    candidates = {
        name: tuple(_priced(pricing, quality, each) for each in row) for name, row in considered.candidates.items()
    }
    method = considered.choice.method
    own = candidates.get(method) or (_priced(pricing, quality, considered.choice),)
    choice, why = _choose(ctx, own) if config.plan.chooses else (_same(own, considered.choice), considered.why)
    kinds = with_baseline(ctx.run, choice.partition)
    sweep = _sweep(ctx, kinds, pricing)
    price = sweep.price
    record = PlanRecord(
        method=method,
        choice=choice,
        why=why,
        candidates=candidates,
        suites={name: suite_groups(each) for name, each in suites_of(kinds, config.variants).items()},
        run=_cost(price),
        passes=sweep.passes,
        suite_costs={name: _cost(alone) for name, alone in sweep.alone.items()},
        rates=StepRates(**asdict(pricing.rates)) if pricing.rates else None,
        pilot=config.plan.pilot,
        compute_optimal=_compute_optimal(quality, own, price.ours.total),
        gpu=describe_gpus(pricing, price, union(*kinds.values()), own),
        cache=plan_cache(pricing, price, config.plan.disk_rate),
    )
    written = record.write(ctx.run)
    if ctx.has_weights and record.gpu is None:
        for each in sweep.pricings:
            require_fits(each.footprint_of(union(*kinds.values())), free_memory_of(ctx))
        _require_disk(ctx, price)
    return [written]


@dataclass(frozen=True)
class _Sweep:
    """What all suites of the run cost; of a sweep, the suites of each pass, and each suite trained alone."""

    pricings: tuple[Pricing, ...]
    price: Price
    passes: tuple[tuple[str, ...], ...]
    alone: dict[str, Price]


def _sweep(ctx: RunContext, kinds: Mapping[str, Partition], first: Pricing) -> _Sweep:
    """The prices of every variant's suites, trained in as few passes as memory allows."""
    variants, groups = ctx.run.config.variants, distinct_groups(kinds)
    by_setting = {sae: pricing_of(ctx, sae, timed=True) for sae in ctx.run.config.other_saes}
    pricings = tuple(by_setting.get(variant.sae, first) for variant in variants)
    if len(variants) == 1:
        return _Sweep(pricings, first.price(groups), (), {})
    free = free_memory_of(ctx) if ctx.has_weights else Available()
    passes = fewest_passes(pricings, groups, free)
    prices = [price_together([pricings[place] for place in members], groups) for members in passes]
    if len(passes) > 1:
        say(f"plan: memory does not hold all {len(variants)} variants at once: they take {len(passes)} passes")
    return _Sweep(
        pricings,
        in_turn(prices),
        tuple(tuple(suites_of(kinds, [variants[place] for place in members])) for members in passes),
        {
            variant.suite(kind): pricing.price(partition.groups)
            for variant, pricing in zip(variants, pricings, strict=True)
            for kind, partition in kinds.items()
        },
    )


def _require_disk(ctx: RunContext, price: Price) -> None:
    """Raises FitError if the files of all variants of a sweep need more disk space than is free."""
    free, needed = available(ctx.run.path).disk, price.memory.disk
    if free is not None and needed > free:
        raise FitError(
            f"The sweep does not fit: its files need {format_bytes(needed)} of disk space, {format_bytes(free)} are "
            "free. Lower the number of SAE settings or seeds, or train.keep_checkpoints."
        )


def _same(candidates: Sequence[Candidate], choice: Candidate) -> Candidate:
    """The choice with its cost: it is one of the candidates."""
    return next(each for each in candidates if each.groups == choice.groups)


def _advise_on_layers_per_token(ctx: RunContext) -> None:
    config = ctx.run.config
    if config.train.layers_per_token == 1 and not config.train.baseline:
        say(
            'plan: without a baseline, train.layers_per_token = "all" takes several times less text, and gave a lower '
            "FVU for the same cost on the built-in model (docs/results.md)"
        )
    batches = config.activations.buffer_tokens / config.train.batch_tokens
    if config.train.layers_per_token == "all" and batches < ENOUGH_BATCHES:
        say(
            f'plan: warning: train.layers_per_token = "all" with a buffer of {batches:.3g} batches: the layers of a '
            "token then come close together, which costs quality. Raise activations.buffer_tokens to at least "
            f"{ENOUGH_BATCHES * config.train.batch_tokens:,}."
        )


def _considered(ctx: RunContext) -> PartitionRecord:
    """What the group stage found; without it, equal chunks of the residual stream of a model known by its sizes."""
    run, config = ctx.run, ctx.run.config
    if run.status("group") == "done":
        return PartitionRecord.read(run)
    if run.status("distances") != "missing" or ctx.has_weights:
        run.require("tokens", "distances", "group")
    layers = ctx.architecture.num_layers - 1
    hookpoints = [f"layers.{layer}" for layer in range(layers)]
    row = tuple(Candidate(method="equal", groups=equal(hookpoints, count).groups) for count in range(1, layers + 1))
    wanted = config.group.groups or layers
    if wanted > layers:
        raise ConfigError(f"group.groups = {wanted}, but there are only {layers} layers to divide; ask for fewer.")
    say("plan: no weights and no distances; equal chunks are priced, AMAD and quality stay unknown")
    why = "asked for" if config.group.groups else "one SAE per layer, as nothing is known of the layers"
    return PartitionRecord(choice=row[wanted - 1], why=why, candidates={"equal": row})


def pricing_of(ctx: RunContext, sae: SAEConfig, *, timed: bool = False) -> Pricing:
    """Prices of SAEs of one setting; `timed`, with seconds measured on this machine where the plan wants them."""
    config, model = ctx.run.config, ctx.architecture
    d_sae = sae.width(model.d_model)
    footprint = Footprint(
        architecture=model,
        num_hookpoints=len(ctx.hookpoints) if ctx.has_weights else model.num_layers - 1,
        num_saes=1,
        d_sae=d_sae,
        batch_tokens=config.train.batch_tokens,
        batch_rows=config.activations.batch_rows,
        context_length=config.text.context_length,
        buffer_tokens=config.activations.buffer_tokens,
        stored_tokens=_stored_tokens(ctx),
        checkpoints=config.train.keep_checkpoints + len(config.train.snapshots),
        bytes_per_number=BYTES[ctx.dtype],
        on_device=ctx.on_device or config.plan.gpu_name is not None,
        vectors=sae.vectors,
        dense_start=sae.dense_start,
    )
    return Pricing(
        footprint,
        sae.trained_k,
        config.train.num_tokens,
        config.train.scale_tokens * config.group.layer_maps.rotation,
        _rates(ctx, sae) if timed else None,
        config.train.layers_per_token,
        config.group.layer_maps,
        gpu_setting(config),
    )


def _stored_tokens(ctx: RunContext) -> int:
    """Tokens of the rows that the run has, training and held-out; 0 before there is text."""
    if ctx.run.status("tokens") != "done":
        return 0
    return ctx.rows.ids_RT.size + ctx.rows.held_out.ids_RT.size


def _rates(ctx: RunContext, sae: SAEConfig) -> Rates | None:
    config = ctx.run.config
    if not config.plan.calibrate or not ctx.has_weights or config.plan.gpu_name:
        return None
    say("plan: timing a few batches ...")
    return time_steps(ctx.source, sae, config.train, seed=config.seed)


@dataclass(frozen=True)
class Quality:
    """What can be said of FVU beforehand: the distances and, after a pilot, the law of this model."""

    distances: Distances
    law: FvuLaw | None
    num_tokens: int

    def proxies(self, partition: Partition) -> dict[str, float]:
        """Each layer's mean-angle proxy."""
        return proxies_of(self.distances, partition)

    def predict(self, partition: Partition) -> dict[str, Estimate | None]:
        """The predicted FVU (after a pilot), and the shares of FVU and delta CE above one SAE per layer."""
        proxies = self.proxies(partition)
        mean = fmean(proxies.values())
        loss = predict_excess(mean, "delta_ce") if self.distances.metric == "angular" else None
        if self.law is None:
            return {"fvu_increase": predict_excess(mean), "delta_ce_increase": loss}
        fvu = self.law.predict(proxies, self.num_tokens)
        increase = self.law.predict_increase(proxies, self.num_tokens)
        return {"fvu": fvu, "fvu_increase": increase, "delta_ce_increase": loss}


def _quality(ctx: RunContext, choice: Candidate) -> Quality | None:
    """None without distances, or where they are not angular, which is what the published fit is of."""
    run, config = ctx.run, ctx.run.config
    if run.status("group") != "done":
        return None
    distances = read_distances(ctx)
    law = None
    if config.plan.pilot:
        trained = with_baseline(run, choice.partition)
        law = run_pilot(
            ctx.source,
            ctx.source.held_out(),
            distances,
            config.sae,
            config.train,
            run_saes=len(union(*trained.values())),
            eval_tokens=min(config.eval.num_tokens, PILOT_EVAL_TOKENS),
            seed=config.seed,
        )
    elif distances.metric != "angular":
        return None
    return Quality(distances, law, config.train.num_tokens)


def _compute_optimal(
    quality: Quality | None, candidates: Sequence[Candidate], budget_flops: float
) -> ComputeOptimal | None:
    """After a pilot, the number of groups that makes most of this run's FLOPs, were all spent on one suite."""
    if quality is None or quality.law is None:
        return None
    options = [Option(each.num_groups, quality.proxies(each.partition), each.own_mflop * 1e6) for each in candidates]
    best = compute_optimal(quality.law, options, budget_flops)[0]
    return ComputeOptimal(
        budget_flops=budget_flops, num_groups=best.option.groups, num_tokens=int(best.num_tokens), fvu=best.fvu
    )


def _priced(pricing: Pricing, quality: Quality | None, candidate: Candidate) -> Candidate:
    """A candidate with its cost, and the quality predicted for it."""
    predicted = quality.predict(candidate.partition) if quality else {}
    return candidate.model_copy(update={"cost": _cost(pricing.price(candidate.groups)), **predicted})


def _cost(price: Price) -> Cost:
    def mflop(flops: Any) -> TokenFlops:
        tokens = flops.sae_tokens * 1e6
        return TokenFlops(language_model=flops.harvest / tokens, saes=flops.training / tokens)

    return Cost(
        published_mflop=mflop(price.paper),
        own_mflop=mflop(price.ours),
        published_flops=price.paper.total,
        own_flops=price.ours.total,
        seconds=price.seconds,
        device_bytes=price.memory.device,
        host_bytes=price.memory.host,
        disk_bytes=price.memory.disk,
    )


def _choose(ctx: RunContext, candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The candidate that the plan's rule takes, and why. Raises ConfigError, naming the cheapest, if none meets it."""
    rules = ctx.run.config.plan
    if rules.max_fvu_increase is not None:
        options = [Option(each.num_groups, {}, each.published_mflop) for each in candidates]
        increases = [each.fvu_increase.value if each.fvu_increase else float("inf") for each in candidates]
        chosen = cheapest_within(options, increases, rules.max_fvu_increase)
        why = f"the cheapest with a predicted FVU increase of at most {rules.max_fvu_increase:.1%}"
        return next(each for each in candidates if each.num_groups == chosen.groups), why
    budget, unit = (rules.budget_flops, "FLOPs") if rules.budget_flops else (rules.budget_hours, "hours")
    costs = [each.cost.own_flops if unit == "FLOPs" else each.cost.seconds / 3600 for each in candidates]
    within = [each for each, cost in zip(candidates, costs, strict=True) if cost <= budget]
    if not within:
        raise ConfigError(f"No number of groups trains for {budget:g} {unit}; the cheapest takes {min(costs):.3g}.")
    return max(within, key=lambda each: each.num_groups), f"the most groups within {budget:g} {unit}"


def free_memory_of(ctx: RunContext) -> Available:
    """Free memory where SAEs are trained, main memory, and disk space at the run's place."""
    free = available(ctx.run.path)
    if not ctx.on_device:
        return free
    device = pick_device(ctx.run.config.model.device)
    return Available(device=torch.cuda.mem_get_info(device)[0], host=free.host, disk=free.disk)
