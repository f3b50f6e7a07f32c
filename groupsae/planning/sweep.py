"""The price of several SAE settings trained side by side, and how many passes over the model they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from groupsae.partition import Group
from groupsae.planning.cost import Cost
from groupsae.planning.memory import Available, Memory, predict_memory
from groupsae.planning.pricing import Price, Pricing

_OF_EVERY_SAE = ("sae_weights", "adam_moments", "disk")
"""Parts of memory that add up over SAEs. Of all others, SAEs that train together need the largest once."""
_SIZES = (
    "lm_weights", "lm_activations", "buffer", "batch", "gradients", "pre_activations", "process", *_OF_EVERY_SAE,
)  # fmt: skip


def memory_together(memories: Sequence[Memory]) -> Memory:
    """The peak of one pass that trains the SAEs of several settings: their weights and moments, all else once."""
    sizes = {
        name: (sum if name in _OF_EVERY_SAE else max)(getattr(memory, name) for memory in memories) for name in _SIZES
    }
    return replace(memories[0], **sizes)


def price_together(pricings: Sequence[Pricing], groups: Sequence[Group]) -> Price:
    """The price of one pass that trains these groups once for every pricing: the language model is read once."""
    prices = [pricing.price(groups) for pricing in pricings]
    return Price(
        paper=_together([price.paper for price in prices]),
        ours=_together([price.ours for price in prices]),
        seconds=_seconds(pricings, prices, groups),
        memory=memory_together([price.memory for price in prices]),
    )


def in_turn(prices: Sequence[Price]) -> Price:
    """The price of several passes, one after the other: the peak of the largest, and the files of all."""
    largest = max((price.memory for price in prices), key=lambda memory: memory.working)
    seconds = [price.seconds for price in prices]
    return Price(
        paper=_added([price.paper for price in prices]),
        ours=_added([price.ours for price in prices]),
        seconds=None if None in seconds else sum(seconds),
        memory=replace(largest, disk=sum(price.memory.disk for price in prices)),
    )


def fewest_passes(
    pricings: Sequence[Pricing], groups: Sequence[Group], available: Available
) -> tuple[tuple[int, ...], ...]:
    """Which pricings, by their place, train in each pass, so that every pass fits into memory.

    Largest first, each into the first pass that has room for it. One that does not even fit alone has a pass of its
    own. Disk space is not looked at: all files lie there at the end, however many passes there are.
    """
    memories = [predict_memory(pricing.footprint_of(groups)) for pricing in pricings]
    passes: list[list[int]] = []
    for place in sorted(range(len(memories)), key=lambda place: -memories[place].sae_weights):
        for members in passes:
            if _fits(memory_together([memories[one] for one in (*members, place)]), available):
                members.append(place)
                break
        else:
            passes.append([place])
    return tuple(sorted(tuple(sorted(members)) for members in passes))


def _fits(memory: Memory, available: Available) -> bool:
    pairs = ((memory.device, available.device), (memory.host, available.host))
    return all(free is None or needed <= free for needed, free in pairs)


def _seconds(pricings: Sequence[Pricing], prices: Sequence[Price], groups: Sequence[Group]) -> float | None:
    if any(pricing.rates is None for pricing in pricings):
        return None
    reading = [
        replace(pricing, rates=replace(pricing.rates, step=0.0)).price(groups).seconds or 0.0 for pricing in pricings
    ]
    return reading[0] + sum((price.seconds or 0.0) - read for price, read in zip(prices, reading, strict=True))


def _together(costs: Sequence[Cost]) -> Cost:
    return replace(costs[0], training=sum(cost.training for cost in costs))


def _added(costs: Sequence[Cost]) -> Cost:
    parts = {name: sum(getattr(cost, name) for cost in costs) for name in ("harvest", "training", "lm_tokens")}
    return Cost(**parts, sae_tokens=costs[0].sae_tokens)
