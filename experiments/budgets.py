"""For a total budget of FLOPs, which plan gives the lowest FVU and delta CE over all layers?

    python experiments/budgets.py [--seeds 0 1 2] [--tokens 40000 120000 360000] [--plans "per layer" groups]

A budget is what one SAE per layer costs on so many tokens, by our own count (language model and sparse steps).
Every plan spends it in its own way on the built-in model: one SAE per layer; groups; groups whose layers have maps
of their own; every layer of a token; groups for three quarters, then each layer from its group's SAE; every other
layer for three quarters, then those between from the layer after. Prints a line per plan, budget and seed, then a
table; writes both to runs/experiments/budgets.json and a plot beside it. With `--plans` only those are trained; the
other plans, budgets and seeds in the file stay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from held import Bed, means

from groupsae.config import PerLayer, SAEConfig, TrainConfig, load_config
from groupsae.partition import Partition
from groupsae.planning.cost import run_cost, sparse_step_flops
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.training.fit import fit_layer_maps, measure_scales
from groupsae.training.trainer import train_groups
from groupsae.training.warm_start import WarmStart

NOTHING, ALL_FOLDED = PerLayer(), PerLayer(bias=True, rotation=True)
FIRST_SHARE = 0.75
"""Of the budget, what the first of two phases gets."""


class Spender:
    """Trains suites of the built-in model for a budget of FLOPs, with one seed; SAEs are the config's, or of `sae`."""

    def __init__(self, bed: Bed, scales: Scales, seed: int, sae: SAEConfig | None = None) -> None:
        self.bed, self.scales, self.seed, self.sae = bed, scales, seed, sae or bed.config.sae

    def train(
        self,
        partition: Partition,
        flops: float,
        *,
        per_token: str | int = 1,
        own: PerLayer = NOTHING,
        start: WarmStart | None = None,
    ) -> Suite:
        """A suite that costs so much."""
        tokens = int(flops / flops_per_token(self.bed, partition, per_token, own))
        return self.train_on(tokens, partition, per_token=per_token, own=own, start=start)

    def train_on(
        self,
        tokens: int,
        partition: Partition,
        *,
        per_token: str | int = 1,
        own: PerLayer = NOTHING,
        start: WarmStart | None = None,
    ) -> Suite:
        """A suite whose SAEs see so many tokens each, at least a batch."""
        bed, train = self.bed, self.bed.config.train
        tokens = max(train.batch_tokens, tokens)
        settings = TrainConfig(**dict(train) | {"num_tokens": tokens, "layers_per_token": per_token})
        layer_maps = fit_layer_maps(
            bed.source,
            partition.groups,
            self.scales,
            own,
            train.scale_tokens,
            d_sae=self.sae.width(bed.source.d_model),
            seed=self.seed,
        )
        trained = train_groups(
            bed.source,
            partition.groups,
            self.scales,
            self.sae,
            settings,
            seed=self.seed,
            buffer_tokens=bed.config.activations.buffer_tokens,
            starts=start.starts(partition.hookpoints, self.scales) if start else None,
            layer_maps=layer_maps,
        )
        return trained.suite(partition)

    def specialized(self, flops: float, per_token: str | int = 1, own: PerLayer = NOTHING) -> Suite:
        """Groups, then each layer from its group's SAE."""
        groups = self.train(self.bed.groups, FIRST_SHARE * flops, per_token=per_token, own=own)
        return self.train(self.bed.layers, (1 - FIRST_SHARE) * flops, start=WarmStart(groups, "group"))

    def alternate(self, flops: float) -> Suite:
        """Every other layer, then those between from the layer after."""
        names = self.bed.groups.hookpoints
        first, rest = Partition.singletons(names[::2]), Partition.singletons(names[1::2])
        known = self.train(first, FIRST_SHARE * flops)
        between = self.train(rest, (1 - FIRST_SHARE) * flops, start=WarmStart(known, "backward"))
        return Suite(self.bed.layers, known.saes | between.saes, self.scales)


PLANS: dict[str, Callable[[Spender, float], Suite]] = {
    "per layer": lambda do, flops: do.train(do.bed.layers, flops),
    "groups": lambda do, flops: do.train(do.bed.groups, flops),
    "groups, every layer of a token": lambda do, flops: do.train(do.bed.groups, flops, per_token="all"),
    "groups, bias": lambda do, flops: do.train(do.bed.groups, flops, own=PerLayer(bias=True)),
    "groups, bias + rotation": lambda do, flops: do.train(do.bed.groups, flops, own=ALL_FOLDED),
    "groups, every layer of a token, bias + rotation": lambda do, flops: do.train(
        do.bed.groups, flops, per_token="all", own=ALL_FOLDED
    ),
    "groups, rotation": lambda do, flops: do.train(do.bed.groups, flops, own=PerLayer(rotation=True)),
    "groups, then per layer": Spender.specialized,
    "groups of every layer, then per layer": lambda do, flops: do.specialized(flops, "all"),
    "groups of every layer, bias + rotation, then per layer": lambda do, flops: do.specialized(
        flops, "all", ALL_FOLDED
    ),
    "alternate layers, then backward": Spender.alternate,
}


def flops_per_token(bed: Bed, partition: Partition, per_token: str | int, own: PerLayer = NOTHING) -> float:
    """FLOPs for each token that every SAE of a partition sees, the language model's share included."""
    model, sae = bed.ctx.architecture, bed.config.sae
    step = sparse_step_flops(model.d_model, sae.width(model.d_model), sae.k) + own.flops(model.d_model)
    return run_cost(model, partition.groups, step, 10**6, bed.config.text.context_length, per_token).total / 10**6


def main() -> None:
    """Train and judge every plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[40_000, 120_000, 360_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS), metavar="PLAN")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bed = Bed(load_config(options.config), options.out / "bed", 2 * max(options.tokens))
    one = flops_per_token(bed, bed.layers, 1)
    file, rows = options.out / "budgets.json", {}
    if file.exists():
        rows = {(row["plan"], row["tokens"], row["seed"]): row for row in json.loads(file.read_text())}
    for seed in options.seeds:
        scales = measure_scales(bed.source, bed.config.train.scale_tokens, center=bed.config.train.center, seed=seed)
        for tokens in options.tokens:
            for name in options.plans:
                suite = PLANS[name](Spender(bed, scales, seed), tokens * one)
                row = {"plan": name, "tokens": tokens, "gflop": tokens * one / 1e9, "seed": seed} | bed.judge(suite)
                rows[name, tokens, seed] = row
                print(json.dumps(row), flush=True)
                file.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    print_table(list(rows.values()), options.tokens)
    draw(list(rows.values()), options.tokens, options.out / "budgets.svg")


def plans_in(rows: list[dict], budgets: list[int]) -> list[str]:
    """The plans that were run at every one of these budgets, in the order of `PLANS`."""
    run = {(row["plan"], row["tokens"]) for row in rows}
    return [plan for plan in PLANS if all((plan, tokens) in run for tokens in budgets)]


def print_table(rows: list[dict], budgets: list[int]) -> None:
    """FVU and delta CE by plan and budget, means over seeds with half their spread; the best of each in bold."""
    print(
        "\n| plan | " + " | ".join(f"{what}, {tokens:,}" for what in ("FVU", "delta CE") for tokens in budgets) + " |"
    )
    print("|---" * (1 + 2 * len(budgets)) + "|")
    plans = plans_in(rows, budgets)
    found = {
        (plan, tokens, key): means([row for row in rows if (row["plan"], row["tokens"]) == (plan, tokens)], key)
        for plan in plans
        for tokens in budgets
        for key in ("fvu", "delta_ce")
    }
    for plan in plans:
        cells = []
        for key in ("fvu", "delta_ce"):
            for tokens in budgets:
                mean, spread = found[plan, tokens, key]
                best = mean == min(found[other, tokens, key][0] for other in plans)
                cells.append(f"{'**' * best}{mean:.4f}{'**' * best} ± {spread:.4f}")
        print(f"| {plan} | " + " | ".join(cells) + " |")


def draw(rows: list[dict], budgets: list[int], path: Path) -> None:
    """FVU by budget as a share of the first plan's: dotted for groups, dashed if single layers follow, else solid."""
    from matplotlib import colormaps, pyplot

    plans = plans_in(rows, budgets)
    some = {
        (plan, at): [row for row in rows if (row["plan"], row["tokens"]) == (plan, at)]
        for plan in plans
        for at in budgets
    }
    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
    for number, plan in enumerate(plans):
        first = [means(some[plans[0], at], "fvu")[0] for at in budgets]
        mean, spread = zip(*(means(some[plan, at], "fvu") for at in budgets), strict=True)
        axes.errorbar(
            [some[plan, at][0]["gflop"] for at in budgets],
            [one / of for one, of in zip(mean, first, strict=True)],
            [one / of for one, of in zip(spread, first, strict=True)],
            linestyle="--" if "then" in plan else ":" if plan.startswith("groups") else "-",
            color=colormaps["tab20"](number),
            marker="o",
            markersize=4,
            capsize=2,
            label=plan,
        )
    axes.set(
        xscale="log",
        xlabel="budget, GFLOP (language model and SAE steps)",
        ylabel=f"FVU, share of that of {plans[0]!r}",
    )
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
