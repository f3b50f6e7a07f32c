"""The rows of the table of a real model: how each spends a budget of FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from real_bed import RealBed

from groupsae.config import PerLayer, TrainConfig
from groupsae.grouping.choose import equal
from groupsae.partition import Partition
from groupsae.saes.suite import Suite
from groupsae.training.fit import fit_layer_maps
from groupsae.training.trainer import train_groups
from groupsae.training.warm_start import WarmStart

NOTHING, ALL_FOLDED = PerLayer(), PerLayer(bias=True, rotation=True)
FIRST_SHARE = 0.75
"""Of a budget that is spent in two phases, what the first gets."""


@dataclass(frozen=True)
class Spending:
    """What a training may cost, in FLOPs by our count, and what of it is charged.

    With `paid`, the activations are taken as harvested for other purposes. Otherwise the language model is charged for
    the text that is read, and grouped rows for the distances.
    """

    flops: float
    paid: bool

    def tokens(
        self, bed: RealBed, partition: Partition, per_token: int | str, own: PerLayer, *, grouped: bool, share: float
    ) -> int:
        """Tokens that each SAE of a partition may see for this share of the budget."""
        step = bed.step_flops + own.flops(bed.source.d_model)
        text_per_token = _text_per_token(partition, per_token)
        per_sae_token = len(partition.groups) * step + (0 if self.paid else bed.harvest_flops(text_per_token))
        fixed = bed.distance_flops if grouped else 0.0
        if own.rotation:
            fixed += 2 * len(partition.hookpoints) * bed.source.d_model**2 * bed.config.train.scale_tokens
        return max(bed.config.train.batch_tokens, int(share * (self.flops - fixed) / per_sae_token))


def _text_per_token(partition: Partition, per_token: int | str) -> float:
    """Tokens of text per token that an SAE sees: the smallest group needs most."""
    return 1.0 if per_token == 1 else 1 / min(map(len, partition.groups))


@dataclass(frozen=True)
class Trainer:
    """Trains suites on a bed with one seed and the tuned learning rates, by kind of training."""

    bed: RealBed
    seed: int
    rates: dict[str, float]

    def train(
        self,
        partition: Partition,
        tokens: int,
        *,
        per_token: int | str = 1,
        own: PerLayer = NOTHING,
        start: WarmStart | None = None,
        frozen: bool = False,
        rate: float | None = None,
    ) -> Suite:
        """A suite whose SAEs see so many tokens each."""
        bed = self.bed
        kind = kind_of(partition, per_token, warm=start is not None)
        options = {
            "num_tokens": tokens,
            "layers_per_token": per_token,
            "learning_rate": rate or self.rates[kind],
            "freeze_decoder": frozen,
            "log_every_tokens": tokens,
            "rescale_encoder_init": start is None,
        }
        train = TrainConfig(**dict(bed.config.train) | options)
        maps = fit_layer_maps(
            bed.source,
            partition.groups,
            bed.scales,
            own,
            train.scale_tokens,
            d_sae=bed.config.sae.width(bed.source.d_model),
            seed=self.seed,
        )
        return train_groups(
            bed.source,
            partition.groups,
            bed.scales,
            bed.config.sae,
            train,
            seed=self.seed,
            buffer_tokens=bed.config.activations.buffer_tokens,
            starts=start.starts(partition.hookpoints, bed.scales) if start else None,
            layer_maps=maps,
        ).suite(partition)

    def spend(self, budget: Spending, partition: Partition, *, share: float = 1.0, **options) -> Suite:
        """A suite that costs this share of a budget."""
        per_token, own = options.get("per_token", 1), options.get("own", NOTHING)
        grouped = len(partition.groups) < len(partition.hookpoints) and len(partition.groups) > 1
        tokens = budget.tokens(self.bed, partition, per_token, own, grouped=grouped, share=share)
        return self.train(partition, tokens, **options)


def kind_of(partition: Partition, per_token: int | str, *, warm: bool) -> str:
    """What a learning rate is tuned for: `warm`, `per layer`, `groups`, or `groups, all layers of each token`."""
    if warm:
        return "warm"
    if len(partition.groups) == len(partition.hookpoints):
        return "per layer"
    return "groups" if per_token == 1 else "groups, all layers of each token"


KINDS = ("per layer", "groups", "groups, all layers of each token", "warm")


def _then_per_layer(do: Trainer, budget: Spending) -> Suite:
    groups = do.spend(budget, do.bed.groups, share=FIRST_SHARE, per_token="all")
    return do.spend(budget, do.bed.layers, share=1 - FIRST_SHARE, start=WarmStart(groups, "group"))


ROWS: dict[str, Callable[[Trainer, Spending], Suite]] = {
    "one SAE per layer": lambda do, budget: do.spend(budget, do.bed.layers),
    "groups as published (AMAD < 0.2)": lambda do, budget: do.spend(budget, do.bed.groups),
    "groups, all layers of each token": lambda do, budget: do.spend(budget, do.bed.groups, per_token="all"),
    "groups, all layers of each token, bias and rotation": lambda do, budget: do.spend(
        budget, do.bed.groups, per_token="all", own=ALL_FOLDED
    ),
    "groups, all layers of each token, then one SAE per layer": _then_per_layer,
    "one SAE for all layers, all layers of each token": lambda do, budget: do.spend(
        budget, equal(do.bed.layers.hookpoints, 1), per_token="all"
    ),
    "as many equal chunks, all layers of each token": lambda do, budget: do.spend(
        budget, equal(do.bed.layers.hookpoints, len(do.bed.groups.groups)), per_token="all"
    ),
    "one SAE per layer, random decoder (control)": lambda do, budget: do.spend(budget, do.bed.layers, frozen=True),
    "one SAE per layer, five times the budget (ceiling)": lambda do, budget: do.spend(
        Spending(5 * budget.flops, budget.paid), do.bed.layers
    ),
}
