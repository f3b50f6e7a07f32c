"""One rule for every learning rate of the table: the best of a grid that does not end at its best value."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from real_bed import RealBed
from real_rows import KINDS, Trainer

from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.partition import Partition
from groupsae.progress import say
from groupsae.training.warm_start import WarmStart

FIRST_GRID = (5e-4, 1e-3, 2e-3)
FACTOR = 2.0
EVAL_TOKENS = 2048


def tune(bed: RealBed, num_tokens: int, known: dict[str, dict[str, float]], save: Callable[[], None]) -> None:
    """Fill `known` with the FVU of every learning rate that was tried, by kind of training.

    Each kind is tried on one group of median size and its layers, on `num_tokens` tokens per SAE, at rates a factor 2
    apart; the grid grows at an end for as long as the best rate lies there. `save` is called after each training.
    """
    for kind in KINDS:
        tried = known.setdefault(kind, {})
        while (rate := _next_rate(tried)) is not None:
            tried[f"{rate:g}"] = _fvu(bed, kind, rate, num_tokens, known)
            say(f"rates: {kind}, {rate:g}: FVU {tried[f'{rate:g}']:.4f}")
            save()


def best_rates(known: dict[str, dict[str, float]]) -> dict[str, float]:
    """The best rate of each kind."""
    return {kind: float(min(tried, key=tried.__getitem__)) for kind, tried in known.items()}


def _next_rate(tried: dict[str, float]) -> float | None:
    """The next rate to try; None once the best has a worse one on either side."""
    missing = [rate for rate in FIRST_GRID if f"{rate:g}" not in tried]
    if missing:
        return missing[0]
    rates = sorted(map(float, tried))
    best = float(min(tried, key=tried.__getitem__))
    if best == rates[0]:
        return best / FACTOR
    return best * FACTOR if best == rates[-1] else None


def _fvu(bed: RealBed, kind: str, rate: float, num_tokens: int, known: dict[str, dict[str, float]]) -> float:
    group = sorted(bed.groups.groups, key=len)[len(bed.groups.groups) // 2]
    together, alone = Partition((group,)), Partition.singletons(group)
    do = Trainer(bed, seed=0, rates=best_rates({kind: tried for kind, tried in known.items() if tried}))
    if kind == "per layer":
        suite = do.train(alone, num_tokens, rate=rate)
    elif kind == "warm":
        suite = do.train(together, num_tokens, per_token="all")
        suite = do.train(alone, max(512, num_tokens // 4), start=WarmStart(suite, "group"), rate=rate)
    else:
        suite = do.train(together, num_tokens, per_token=1 if kind == "groups" else "all", rate=rate)
    found = evaluate_reconstructions({"it": suite}, bed.held_out.narrowed(group), EVAL_TOKENS).suites["it"]
    return fmean(one.fvu for one in found.values())
