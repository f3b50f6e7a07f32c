"""What the transfer experiment found: its record, and the numbers that are drawn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

RECORD = "experiment/transfer.json"
DIRECTIONS = ("forward", "backward", "group")
MEASURES = ("fvu", "delta_ce", "ce_score")

Scores = Mapping[str, Mapping[str, float | None]]
"""Scores by hookpoint: fvu, l0, dead_share, ce, delta_ce, ce_score, kl."""


@dataclass(frozen=True)
class Mean:
    """Means over layers; a measure that some layer lacks is None."""

    fvu: float | None
    delta_ce: float | None
    ce_score: float | None
    l0: float | None

    @classmethod
    def of(cls, scores: Scores, layers: Sequence[str]) -> Mean:
        """The means over these layers."""

        def mean(measure: str) -> float | None:
            values = [scores[layer][measure] for layer in layers]
            return None if None in values else fmean(values)

        return cls(mean("fvu"), mean("delta_ce"), mean("ce_score"), mean("l0"))


@dataclass(frozen=True)
class Look:
    """One look at the SAEs of a direction, as means over the layers that it starts warm.

    `scratch` are SAEs of the same layers, trained from scratch on the same tokens in the same
    schedule; None at zero tokens. Normalized progress is (now - zero-shot) / (base - zero-shot) of the means:
    0 before training, 1 where it is as good as the base SAE; None where base and zero-shot agree.
    """

    tokens: int
    transfer: Mean
    scratch: Mean | None
    progress: dict[str, float | None]
    scratch_progress: dict[str, float | None]
    matched_fvu: tuple[float, float] | None
    """FVU of transfer and scratch at one L0, the smaller of both, layer by layer; None before training."""


@dataclass(frozen=True)
class Budget:
    """A way to spend a budget on all layers: what it cost and what it gave."""

    name: str
    tokens: str
    flops: float
    seconds: float
    mean: Mean


class TransferResults:
    """The record of the transfer experiment, as means, progress and budgets."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.hookpoints: tuple[str, ...] = tuple(record["hookpoints"])

    @property
    def base(self) -> Scores:
        """The scores of each layer's own SAE."""
        return {name: self.record["zero_shot"][name][name] for name in self.hookpoints}

    def layers(self, direction: str) -> list[str]:
        """The layers that have something to start from."""
        return [layer for layer, source in self.record["sources"][direction].items() if source]

    def zero_shot(self, direction: str) -> Scores:
        """The scores of what each layer starts from, before any training on it."""
        if direction == "group":
            return self.record["groups"]
        sources = self.record["sources"][direction]
        return {layer: self.record["zero_shot"][sources[layer]][layer] for layer in self.layers(direction)}

    @cached_property
    def looks(self) -> dict[str, list[Look]]:
        """The looks at each direction, from zero tokens on."""
        return {direction: self._looks(direction) for direction in DIRECTIONS if self.layers(direction)}

    def base_mean(self, direction: str) -> Mean:
        """The base SAEs of the layers of a direction."""
        return Mean.of(self.base, self.layers(direction))

    def budgets(self) -> list[Budget]:
        """Each way to spend a budget, as it was measured."""
        return [
            Budget(row["name"], row["tokens"], row["flops"], row["seconds"], Mean.of(row["scores"], self.hookpoints))
            for row in self.record["budgets"]
        ]

    def summary(self) -> dict[str, Any]:
        """EvalHook and budgets as JSON."""
        return {
            "looks": {direction: [asdict(look) for look in looks] for direction, looks in self.looks.items()},
            "base": {direction: asdict(self.base_mean(direction)) for direction in self.looks},
            "budgets": [asdict(budget) for budget in self.budgets()],
        }

    def _looks(self, direction: str) -> list[Look]:
        layers = self.layers(direction)
        start, base = Mean.of(self.zero_shot(direction), layers), self.base_mean(direction)
        found = [Look(0, start, None, _progress(start, start, base), {}, None)]
        for look in self.record["looks"]:
            now, scratch = (Mean.of(look["scores"][name], layers) for name in (direction, "scratch"))
            matched = [look["matched"][direction][layer] for layer in layers]
            found.append(
                Look(
                    look["tokens"],
                    now,
                    scratch,
                    _progress(now, start, base),
                    _progress(scratch, start, base),
                    (fmean(pair["transfer"] for pair in matched), fmean(pair["scratch"] for pair in matched)),
                )
            )
        return found


def _progress(now: Mean, start: Mean, base: Mean) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for measure in MEASURES:
        value, zero, whole = (getattr(mean, measure) for mean in (now, start, base))
        known = None not in (value, zero, whole) and whole != zero
        found[measure] = (value - zero) / (whole - zero) + 0.0 if known else None
    return found
