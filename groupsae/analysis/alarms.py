"""Alarms: what is so far off in a trained run that its numbers should not be used before somebody has looked.

Each alarm is one line: what was found, where, and which keys to turn. They are printed to stderr after training and
evaluation, and stand at the head of the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean

from groupsae.analysis.run_records import RunRecords, suite_title
from groupsae.config import RunConfig
from groupsae.records.types.training import MetricsLine

MOST_DEAD = 0.5
"""Share of dead latents beyond which there is an alarm."""
L0_TOLERANCE = 0.1
"""Share of k by which L0 may be off at a layer."""
RISE = 1.1
"""The last FVU of training may be at most this many times the lowest that was logged."""


def alarms(records: RunRecords, config: RunConfig) -> tuple[str, ...]:
    """The alarms of a run, the gravest first; none where nothing was trained or evaluated."""
    found: list[str] = []
    settings = {variant.name: variant.sae for variant in config.variants}
    for suite, partition in records.partitions.items():
        own = config.model_copy(update={"sae": settings.get(partition.variant, config.sae)})
        found += _useless(records.by_layer(suite, "fvu"), suite, own)
        found += _dead(records.by_layer(suite, "dead_share"), suite, own)
        found += _off_k(records.by_layer(suite, "l0"), suite, own)
    return (*found, *_rising(records.log))


def _useless(fvu: Mapping[str, float], suite: str, config: RunConfig) -> Iterator[str]:
    """FVU at or above 1: the mean activation alone would reconstruct better."""
    bad = {layer: value for layer, value in fvu.items() if value >= 1}
    if bad:
        center = "" if config.train.center else "set train.center = true, or "
        yield (
            f"{suite_title(suite)}: FVU is {_worst(bad)}. At 1 and above, an SAE reconstructs worse than the mean "
            f"activation. To mend it, {center}lower train.learning_rate (now {_rate(config)}) or raise "
            f"train.num_tokens (now {config.train.num_tokens:,})."
        )


def _dead(shares: Mapping[str, float], suite: str, config: RunConfig) -> Iterator[str]:
    """More than half of the latents dead."""
    bad = {layer: value for layer, value in shares.items() if value > MOST_DEAD}
    if bad:
        center = "" if config.train.center else "set train.center = true, "
        yield (
            f"{suite_title(suite)}: {fmean(bad.values()):.0%} of the latents are dead at {_places(bad)}. To mend it, "
            f"{center}lower train.learning_rate (now {_rate(config)}), lower sae.dead_after_tokens (now "
            f"{config.sae.dead_after_tokens:,}), train on more tokens, or take a smaller dictionary."
        )


def _off_k(l0: Mapping[str, float], suite: str, config: RunConfig) -> Iterator[str]:
    """L0 more than 10 % away from k at a layer."""
    if config.train.imported is not None:  # nobody asked for k here
        return
    k = config.eval.k or config.sae.k
    bad = {layer: value for layer, value in l0.items() if abs(value / k - 1) > L0_TOLERANCE}
    if bad:
        named = ", ".join(f"{value:.1f} at {layer}" for layer, value in list(bad.items())[:4])
        yield (
            f"{suite_title(suite)}: sae.k = {k} latents per token are asked for, but L0 is {named}. Do not compare it "
            "with suites of another L0. To mend it, train on more tokens, or set sae.architecture = 'topk', whose L0 "
            "is exact."
        )


def _rising(log: tuple[MetricsLine, ...]) -> Iterator[str]:
    """A training FVU that ends above the lowest that was logged."""
    if len(log) < 2:
        return
    lowest: dict[str, float] = {}
    for line in log:
        for name, logged in line.groups.items():
            lowest[name] = min(logged.fvu, lowest.get(name, logged.fvu))
    last = {name: logged.fvu for name, logged in log[-1].groups.items()}
    bad = {name: value for name, value in last.items() if value > RISE * lowest[name]}
    if bad:
        name, value = max(bad.items(), key=lambda item: item[1] / lowest[item[0]])
        yield (
            f"Training went wrong: FVU rose to {value:.4f} at {name}, from {lowest[name]:.4f} before "
            f"({len(bad)} of {len(last)} SAEs). Lower train.learning_rate, or set train.warmup_share."
        )


def _worst(values: Mapping[str, float]) -> str:
    layer = max(values, key=values.__getitem__)
    more = f" and at {len(values) - 1} more layers" if len(values) > 1 else ""
    return f"{values[layer]:.3f} at {layer}{more}"


def _places(values: Mapping[str, float]) -> str:
    names = list(values)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more layers" if len(names) > 4 else "")


def _rate(config: RunConfig) -> str:
    return "automatic" if config.train.learning_rate is None else f"{config.train.learning_rate:g}"
