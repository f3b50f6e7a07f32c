"""Ways to spend a budget on all layers: what each costs in FLOPs and seconds, and which controls cost as much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from groupsae.errors import RunError
from groupsae.partition import Group, Partition
from groupsae.planning.cost import run_cost, sparse_step_flops
from groupsae.recipes.context import RunContext
from groupsae.records.types.training import TrainRecord, suite_seconds
from groupsae.training.loop import PARTS

EQUAL_FLOPS, EQUAL_TIME = "equal-flops", "equal-time"


class Spending:
    """What the parts of the transfer experiment cost.

    FLOPs are our own count of what is computed. Seconds are measured: the steps of the SAEs in question, and
    everything that all SAEs share.
    """

    def __init__(self, ctx: RunContext, partition: Partition, transfer_tokens: int, seconds: Mapping[str, float]):
        self.ctx, self.partition, self.transfer_tokens = ctx, partition, transfer_tokens
        self.base_tokens = ctx.run.config.train.num_tokens
        self.layers = Partition.singletons(partition.hookpoints).groups
        record = TrainRecord.read(ctx.run)
        self._trained = record.seconds | {name: each.seconds for name, each in record.saes.items()}
        self._transferred = seconds

    def base(self) -> tuple[float, float]:
        """FLOPs and seconds of one SAE per layer."""
        return self._flops(self.layers, self.base_tokens), _seconds(self._trained, self.partition.hookpoints)

    def groups(self) -> tuple[float, float]:
        """FLOPs and seconds of one SAE per group."""
        return self._flops(self.partition.groups, self.base_tokens), _seconds(self._trained, self.partition.names)

    def specialized(self) -> tuple[float, float]:
        """FLOPs and seconds of one SAE per group, and then one per layer from it."""
        flops, seconds = self.groups()
        steps = [f"group.{name}" for name in self.partition.hookpoints]
        return (
            flops + self._flops(self.layers, self.transfer_tokens),
            seconds + _seconds(self._transferred, steps),
        )

    def scratch(self, num_tokens: int) -> tuple[float, float]:
        """FLOPs and seconds of one SAE per layer on another number of tokens, at the base SAEs' pace."""
        return self._flops(self.layers, num_tokens), self.base()[1] * num_tokens / self.base_tokens

    def equal_tokens(self) -> dict[str, int]:
        """Tokens on which one SAE per layer costs as much as the groups and their specialization."""
        flops, seconds = self.specialized()
        one_flops, one_second = (cost / self.base_tokens for cost in self.base())
        if not one_second > 0:
            raise RunError("train.json holds no seconds to compare with. Train again with --overwrite.")
        return {EQUAL_FLOPS: max(1, round(flops / one_flops)), EQUAL_TIME: max(1, round(seconds / one_second))}

    def rows(self, equal: Mapping[str, int], scores: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every way with its tokens, cost and scores."""
        then = f"{self.base_tokens:,} + {self.transfer_tokens:,}"
        rows = [
            ("base", "per layer", f"{self.base_tokens:,}", self.base()),
            ("groups", f"{len(self.partition)} groups", f"{self.base_tokens:,}", self.groups()),
            ("specialized", "groups, then per layer", then, self.specialized()),
            *(
                (key, f"per layer, {what}", f"{equal[key]:,}", self.scratch(equal[key]))
                for key, what in ((EQUAL_FLOPS, "equal FLOPs"), (EQUAL_TIME, "equal time"))
            ),
        ]
        return [
            {"key": key, "name": name, "tokens": tokens, "flops": flops, "seconds": seconds, "scores": scores[key]}
            for key, name, tokens, (flops, seconds) in rows
        ]

    def _flops(self, groups: Sequence[Group], num_tokens: int) -> float:
        config, model = self.ctx.run.config, self.ctx.architecture
        step = sparse_step_flops(model.d_model, config.sae.width(model.d_model), config.sae.k)
        per_token = config.train.layers_per_token
        return run_cost(model, groups, step, num_tokens, config.text.context_length, per_token).total


def _seconds(spent: Mapping[str, float], saes: Iterable[str]) -> float:
    """Seconds of some SAEs of a pass as if trained alone, as `TrainRecord.seconds_of` counts them."""
    return suite_seconds({part: spent[part] for part in PARTS}, (spent[name] for name in saes))
