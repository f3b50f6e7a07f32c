"""The plan stage: what every partition would cost and give, and which one is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from groupsae.errors import ConfigError
from groupsae.grouping.choose import equal
from groupsae.grouping.distances import Distances
from groupsae.models import pick_device
from groupsae.partition import Partition
from groupsae.planning.fvu_law import FvuLaw, Option, cheapest_within, compute_optimal
from groupsae.planning.memory import Available, Footprint, require_fits
from groupsae.planning.pricing import Price, Pricing, Rates, available, union
from groupsae.planning.published import predict_excess
from groupsae.progress import say
from groupsae.recipes.context import RunContext
from groupsae.recipes.group import read_distances, read_groups
from groupsae.recipes.pilot import proxies_of, run_pilot
from groupsae.recipes.train import with_baseline
from groupsae.training.timing import time_steps

PILOT_EVAL_TOKENS = 8192
ENOUGH_BATCHES = 8
"""Batches that a shuffle buffer should hold where every layer of a token is trained on."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def plan(bench: RunContext) -> list[str]:
    """Prices and predictions for every candidate of every method, and the choice: `plan.json`.

    Without distances (a model whose weights are not at hand) equal chunks are priced. Raises
    ConfigError if nothing meets the budget; FitError, with the plan written, if the run does not fit.
    """
    run, config = bench.run, bench.run.config
    _advise_on_layers_per_token(bench)
    found = _candidates(bench)
    pricing = _pricing(bench)
    quality = _quality(bench, found)
    method = found["method"]
    rows = {name: [_row(pricing, quality, row) for row in rows] for name, rows in found["methods"].items()}
    candidates = rows.get(method) or [_row(pricing, quality, found["choice"])]
    choice = _choose(bench, candidates) if config.plan.chooses else found["choice"]
    trained = with_baseline(run, read_groups(choice["groups"]))
    price = pricing.price(union(*trained.values()))
    record = {
        "method": method,
        "choice": choice,
        "candidates": candidates,
        "methods": rows,
        "partitions": {name: partition.groups for name, partition in trained.items()},
        "run": _numbers(price),
        "rates": asdict(pricing.rates) if pricing.rates else None,
        "pilot": config.plan.pilot,
        "compute_optimal": _compute_optimal(quality, candidates, pricing.price(union(*trained.values())).ours.total),
    }
    run.write_json("plan.json", record)
    if bench.has_weights:
        require_fits(pricing.footprint_of(union(*trained.values())), _free(bench))
    return ["plan.json"]


def _advise_on_layers_per_token(bench: RunContext) -> None:
    config = bench.run.config
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


def _candidates(bench: RunContext) -> dict[str, Any]:
    """What the group stage found; without it, equal chunks of the residual stream of a model known by its sizes."""
    run, config = bench.run, bench.run.config
    if run.status("group") == "done":
        return run.read_json("partition.json")
    if run.status("distances") != "missing" or bench.has_weights:
        run.require("tokens", "distances", "group")
    layers = bench.architecture.num_layers - 1
    hookpoints = [f"layers.{layer}" for layer in range(layers)]
    rows = [{"num_groups": count, "groups": equal(hookpoints, count).groups} for count in range(1, layers + 1)]
    wanted = config.group.groups or layers
    if wanted > layers:
        raise ConfigError(f"group.groups = {wanted}, but there are only {layers} layers to divide; ask for fewer.")
    say("plan: no weights and no distances; equal chunks are priced, AMAD and quality stay unknown")
    why = "asked for" if config.group.groups else "one SAE per layer, as nothing is known of the layers"
    return {"method": "equal", "choice": rows[wanted - 1] | {"why": why}, "methods": {"equal": rows}}


def _pricing(bench: RunContext) -> Pricing:
    config, model = bench.run.config, bench.architecture
    d_sae = config.sae.width(model.d_model)
    footprint = Footprint(
        architecture=model,
        num_hookpoints=len(bench.hookpoints) if bench.has_weights else model.num_layers - 1,
        num_saes=1,
        d_sae=d_sae,
        batch_tokens=config.train.batch_tokens,
        batch_rows=config.activations.batch_rows,
        context_length=config.text.context_length,
        buffer_tokens=config.activations.buffer_tokens,
        checkpoints=config.train.keep_checkpoints + len(config.train.snapshots),
        bytes_per_number=BYTES[config.model.dtype],
        on_device=bench.on_device,
        vectors=config.sae.vectors,
        dense_start=config.sae.dense_start,
    )
    return Pricing(
        footprint,
        config.sae.k,
        config.train.num_tokens,
        config.train.scale_tokens * config.group.layer_maps.rotation,
        _rates(bench),
        config.train.layers_per_token,
        config.group.layer_maps,
    )


def _rates(bench: RunContext) -> Rates | None:
    config = bench.run.config
    if not config.plan.calibrate or not bench.has_weights:
        return None
    say("plan: timing a few batches ...")
    return time_steps(bench.source, config.sae, config.train, seed=config.seed)


@dataclass(frozen=True)
class Quality:
    """What can be said of FVU beforehand: the distances and, after a pilot, the law of this model."""

    distances: Distances
    law: FvuLaw | None
    num_tokens: int

    def proxies(self, partition: Partition) -> dict[str, float]:
        """Each layer's mean-angle proxy."""
        return proxies_of(self.distances, partition)

    def predict(self, partition: Partition) -> dict[str, Any]:
        """The predicted FVU (after a pilot), and the shares of FVU and delta CE above one SAE per layer."""
        proxies = self.proxies(partition)
        mean = fmean(proxies.values())
        loss = asdict(predict_excess(mean, "delta_ce")) if self.distances.metric == "angular" else None
        if self.law is None:
            return {"fvu": None, "fvu_increase": asdict(predict_excess(mean)), "delta_ce_increase": loss}
        fvu = self.law.predict(proxies, self.num_tokens)
        alone = self.law.predict(dict.fromkeys(proxies, 0.0), self.num_tokens).value
        increase = {key: value / alone - 1 for key, value in asdict(fvu).items()}
        return {"fvu": asdict(fvu), "fvu_increase": increase, "delta_ce_increase": loss}


def _quality(bench: RunContext, found: dict[str, Any]) -> Quality | None:
    """None without distances, or where they are not angular, which is what the published fit is of."""
    run, config = bench.run, bench.run.config
    if run.status("group") != "done":
        return None
    distances = read_distances(bench)
    law = None
    if config.plan.pilot:
        trained = with_baseline(run, read_groups(found["choice"]["groups"]))
        law = run_pilot(
            bench.source,
            bench.source.held_out(),
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
    quality: Quality | None, candidates: Sequence[dict[str, Any]], budget_flops: float
) -> dict[str, Any] | None:
    """After a pilot, the number of groups that makes most of this run's FLOPs, were all spent on one suite."""
    if quality is None or quality.law is None:
        return None
    flops = [row["own_mflop_per_token"]["total"] * 1e6 for row in candidates]
    options = [
        Option(row["num_groups"], quality.proxies(read_groups(row["groups"])), each)
        for row, each in zip(candidates, flops, strict=True)
    ]
    best = compute_optimal(quality.law, options, budget_flops)[0]
    return {
        "budget_flops": budget_flops,
        "num_groups": best.option.groups,
        "num_tokens": int(best.num_tokens),
        "fvu": asdict(best.fvu),
    }


def _row(pricing: Pricing, quality: Quality | None, row: dict[str, Any]) -> dict[str, Any]:
    """A candidate with its prices, and the quality predicted for it."""
    partition = read_groups(row["groups"])
    predicted = quality.predict(partition) if quality else dict.fromkeys(("fvu", "fvu_increase", "delta_ce_increase"))
    return row | _numbers(pricing.price(partition.groups)) | predicted


def _numbers(price: Price) -> dict[str, Any]:
    def mflop(cost: Any) -> dict[str, float]:
        tokens = cost.lm_tokens * 1e6
        return {
            "language_model": cost.harvest / tokens,
            "saes": cost.training / tokens,
            "total": cost.total / tokens,
        }

    return {
        "mflop_per_token": mflop(price.paper),
        "own_mflop_per_token": mflop(price.ours),
        "total_flops": {"paper": price.paper.total, "own": price.ours.total},
        "seconds": price.seconds,
        "device_bytes": price.memory.device,
        "host_bytes": price.memory.host,
        "disk_bytes": price.memory.disk,
    }


def _choose(bench: RunContext, candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The candidate that the plan's rule takes. Raises ConfigError, naming the cheapest, if none meets it."""
    rules = bench.run.config.plan
    if rules.max_fvu_increase is not None:
        options = [Option(row["num_groups"], {}, row["mflop_per_token"]["total"]) for row in candidates]
        increases = [row["fvu_increase"]["value"] if row["fvu_increase"] else float("inf") for row in candidates]
        chosen = cheapest_within(options, increases, rules.max_fvu_increase)
        why = f"the cheapest with a predicted FVU increase of at most {rules.max_fvu_increase:.1%}"
        return next(row for row in candidates if row["num_groups"] == chosen.groups) | {"why": why}
    budget, unit = (rules.budget_flops, "FLOPs") if rules.budget_flops else (rules.budget_hours, "hours")
    costs = [_spent(row, unit) for row in candidates]
    within = [row for row, cost in zip(candidates, costs, strict=True) if cost <= budget]
    if not within:
        raise ConfigError(f"No number of groups trains for {budget:g} {unit}; the cheapest takes {min(costs):.3g}.")
    return max(within, key=lambda row: row["num_groups"]) | {"why": f"the most groups within {budget:g} {unit}"}


def _spent(row: dict[str, Any], unit: str) -> float:
    return row["total_flops"]["own"] if unit == "FLOPs" else row["seconds"] / 3600


def _free(bench: RunContext) -> Available:
    free = available(bench.run.path)
    if not bench.on_device:
        return free
    device = pick_device(bench.run.config.model.device)
    return Available(device=torch.cuda.mem_get_info(device)[0], host=free.host, disk=free.disk)
