"""What the plan says in tables and sentences: the price of every partition, and predictions beside measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from groupsae.partition import Partition
from groupsae.records import RunDirectory
from groupsae.report.data import BASELINE, GROUPS, RunData, as_groups
from groupsae.report.outlook import Interval, Offer, Outlook, interval, look_ahead
from groupsae.report.summary import SuiteSummary, summarize_data
from groupsae.report.tables import Cell, Measure, SortableTable, command
from groupsae.report.wording import NONE, count, duration, fixed, flops, percent, plural, share, size

_Read = Callable[[Offer], float | None]
_Column = tuple[str, str, str, _Read, Callable[[float | None], str]]


def is_priced(data: RunData) -> bool:
    """Whether there is a plan that prices partitions."""
    return any(offer.paper_mflop is not None for offer in look_ahead(data).own)


def price_table(data: RunData) -> SortableTable | None:
    """A row per partition of the run's method; what the plan does not say of any has no column."""
    if not is_priced(data):
        return None
    outlook = look_ahead(data)
    columns = [one for one in _columns(outlook) if any(one[3](offer) is not None for offer in outlook.own)]
    heads: list[tuple[str, int]] = [("", 2)]
    for head, *_ in columns:
        heads = [*heads[:-1], (head, heads[-1][1] + 1)] if heads[-1][0] == head else [*heads, (head, 1)]
    rows = []
    for offer in outlook.own:
        who = _chosen_by(outlook, offer)
        cells = [Cell(str(offer.num_groups), offer.num_groups), Cell(who, len(who), who)]
        for *_, read, show in columns:
            value = read(offer)
            cells.append(Cell(show(value), "" if value is None else value))
        rows.append(tuple(cells))
    names = (("groups", "groups"), ("chosen_by", "chosen by"), *((key, title) for _, key, title, *_ in columns))
    marked = frozenset(place for place, offer in enumerate(outlook.own) if offer == outlook.chosen)
    return SortableTable("price-table", tuple(heads), names, tuple(rows), marked)


def _columns(outlook: Outlook) -> list[_Column]:
    """Head, key, title, value and text of every column behind the first two."""
    alone = outlook.singletons()

    def saving(key: str) -> _Read:
        def read(offer: Offer) -> float | None:
            cost, whole = getattr(offer, key), alone and getattr(alone, key)
            return None if cost is None or not whole else 1 - cost / whole

        return read

    def plain(key: str) -> _Read:
        return lambda offer: getattr(offer, key)

    distances = [
        ("distance inside groups", key, title, plain(key), fixed)
        for key, title in (("amad", "AMAD"), ("size_weighted_amad", "weighted"), ("largest_diameter", "largest"))
    ]
    mflop = [
        column
        for head, key in (("paper’s MFLOP", "paper"), ("our MFLOP", "own"))
        for column in (
            (head, f"{key}_mflop", "total", plain(f"{key}_mflop"), _mflop),
            (head, f"{key}_saving", "saving", saving(f"{key}_mflop"), percent),
        )
    ]
    needs = [
        ("training takes", "seconds", "time", plain("seconds"), duration),
        ("training takes", "memory_bytes", "memory", plain("memory_bytes"), size),
        ("training takes", "disk_bytes", "disk", plain("disk_bytes"), size),
    ]
    return distances + mflop + needs + _quality_columns(outlook)


def _quality_columns(outlook: Outlook) -> list[_Column]:
    if outlook.quality is None:
        return []
    key, head, show = "fvu", "predicted FVU", fixed
    if outlook.quality == "increase":
        key, head, show = "fvu_increase", "predicted increase", share

    def end(name: str) -> _Read:
        return lambda offer: getattr(getattr(offer, outlook.quality), name)

    return [
        (head, key, "value", end("value"), show),
        (head, f"{key}_low", "from", end("low"), show),
        (head, f"{key}_high", "to", end("high"), show),
    ]


def _mflop(value: float | None) -> str:
    return fixed(value, 1 if value is not None and value >= 100 else 2)


def _chosen_by(outlook: Outlook, offer: Offer) -> str:
    run = offer == outlook.chosen
    paper = outlook.papers is not None and offer.partition == outlook.papers.partition
    return "run, paper" if run and paper else "run" if run else "paper" if paper else ""


def note(data: RunData) -> str:
    """What stands below the price table."""
    outlook = look_ahead(data)
    text = "Each row is a suite trained alone. MFLOP are per token of the language model: by the paper’s count with a "
    text += "dense step for each SAE, by ours as run. Savings are against one SAE per layer. "
    if outlook.quality == "increase":
        text += "The increase is that of mean FVU over one SAE per layer. "
    if outlook.quality:
        text += "“From” and “to” should hold the outcome in four of five cases. "
    return text + "A column’s heading sorts by it."


# ---- predicted and measured


def forecast_table(data: RunData) -> list[Measure]:
    """What was predicted of this run beside what came of it: training time, and quality of the trained suites.

    Empty without predictions, and where something else was trained than what was planned. Without measurements a row
    has one value.
    """
    if data.plan is None or not _as_planned(data):
        return []
    outlook, suites = look_ahead(data), {suite.name: suite for suite in summarize_data(data)}
    rows = []
    predicted = (data.plan.get("run") or {}).get("seconds")
    if predicted is not None:
        taken = sum(data.train["seconds"].values()) if data.train else None
        meaning = f"all {_trained_saes(data)} SAEs of this run in one pass"
        rows.append(_against("Training time", meaning, predicted, duration(predicted), taken, duration))
    offers = {GROUPS: outlook.chosen, BASELINE: outlook.singletons()}
    if outlook.quality == "fvu":
        for name, offer in offers.items():
            if name in suites and offer is not None and offer.fvu is not None:
                title = f"Mean FVU, {'groups' if name == GROUPS else 'one SAE per layer'}"
                rows.append(_predicted(title, "variance unexplained", offer.fvu, suites[name].mean_fvu, fixed))
    elif outlook.quality == "increase" and outlook.chosen is not None and outlook.chosen.increase is not None:
        title, meaning = "Increase of mean FVU", "groups over one SAE per layer"
        rows.append(_predicted(title, meaning, outlook.chosen.increase, _increase(suites), share))
    if all(row.values[1] == NONE for row in rows):
        return [replace(row, values=row.values[:1]) for row in rows]
    return rows


def _as_planned(data: RunData) -> bool:
    planned = data.plan.get("planned")
    if planned is None:
        return True
    return {name: Partition(as_groups(groups)) for name, groups in planned.items()} == data.partitions


def _trained_saes(data: RunData) -> int:
    return len({group for partition in data.partitions.values() for group in partition.groups})


def _increase(suites: dict[str, SuiteSummary]) -> float | None:
    groups, alone = (suites[name].mean_fvu if name in suites else None for name in (GROUPS, BASELINE))
    return None if groups is None or not alone else groups / alone - 1


def _predicted(
    name: str, meaning: str, found: Interval, measured: float | None, show: Callable[[float | None], str]
) -> Measure:
    text = f"{show(found.value)} ({show(found.low)} to {show(found.high)})"
    return _against(name, meaning, found.value, text, measured, show)


def _against(
    name: str, meaning: str, predicted: float, text: str, measured: float | None, show: Callable[[Any], str]
) -> Measure:
    if measured is None:
        return Measure(name, meaning, (text, NONE), "")
    change = share(measured / predicted - 1) if predicted else NONE
    if show is share:
        change = share(measured - predicted).replace("%", "pp")
    return Measure(name, meaning, (text, show(measured)), change)


def forecast_sentences(data: RunData) -> list[str]:
    """What the run takes as a whole, and how its FLOPs would be spent best."""
    plan, sentences = data.plan or {}, []
    total = (plan.get("run") or {}).get("total_flops") or {}
    if total.get("own") is not None and _as_planned(data):
        run = plan["run"]
        memory, disk = size(run.get("device_bytes") or run.get("host_bytes")), size(run.get("disk_bytes"))
        sentences.append(
            f"This run as a whole, {plural(_trained_saes(data), 'SAE')}, is planned at {flops(total['own'] / 1e15)} by "
            f"our own count ({flops(total['paper'] / 1e15)} by the paper’s), {memory} of memory and {disk} of disk."
        )
    best = plan.get("compute_optimal") or {}
    if best:
        found = interval(best.get("fvu"))
        quality = f": mean FVU {fixed(found.value)} ({fixed(found.low)} to {fixed(found.high)})" if found else ""
        sentences.append(
            f"For this run’s {flops(best['budget_flops'] / 1e15)} spent on one suite, "
            f"{plural(best['num_groups'], 'group')} with {count(best['num_tokens'])} tokens each are predicted "
            f"best{quality}."
        )
    return sentences


def unpredicted(run: RunDirectory, data: RunData) -> tuple[str, list[str]] | None:
    """What this plan does not say, and the commands that find it out; None if it says everything."""
    if not is_priced(data):
        return None
    outlook = look_ahead(data)
    texts, flags, before = [], [], []
    if any(offer.own_mflop is None for offer in outlook.own):
        texts.append("This plan is of an older version: it has no cost by our own count, no memory and no disk.")
    if data.distances is None:
        texts.append("AMAD and quality are not known before the layers are compared, which needs the model’s weights.")
        before = [command(run, stage) for stage in ("tokens", "distances", "group") if run.status(stage) != "done"]
    elif outlook.quality is None:
        texts.append("No FVU is predicted.")
    elif outlook.quality == "increase":
        texts.append("How large FVU will be on this model, a pilot tells: a few small SAEs, trained first.")
    if any(offer.seconds is None for offer in outlook.own):
        texts.append("Training time is not predicted: no batch was timed on this machine.")
        flags.append("--calibrate")
    if outlook.quality != "fvu":
        flags.append("--pilot")
    if not texts:
        return None
    return " ".join(texts), [*before, " ".join([command(run, "plan"), "--overwrite", *flags])]
