"""The report's part about a sweep: a sentence, key figures and tables of its settings and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from statistics import fmean
from typing import NamedTuple

from groupsae.analysis.frames import Column, Frame
from groupsae.analysis.run_records import RunRecords, suite_title
from groupsae.analysis.sweep import seed_stabilities, suites_by_setting
from groupsae.metrics import METRICS, count, fixed, percent
from groupsae.records.types.summary import OverSeeds, SettingSummary
from groupsae.report.figures.theme import group_label
from groupsae.report.wording import plural
from groupsae.units import format_duration

Fact = tuple[str, str, str]


def sweep_headline(records: RunRecords, sweep: Sequence[SettingSummary]) -> str:
    """The sweep in one sentence, as far as it has come."""
    settings, seeds = len({row.setting for row in sweep}), max((len(row.suites) for row in sweep), default=0)
    if not sweep:
        return f"A sweep of {plural(len(records.variants), 'variant')}. They are not trained yet."
    trained = len(records.train.saes) if records.train else 0
    text = f"{plural(settings, 'SAE setting')}, {plural(seeds, 'seed')}: {plural(trained, 'SAE')} in {_passes(records)}"
    known = [row for row in sweep if row.mean_fvu is not None and row.mean_l0 is not None]
    if not known:
        return f"{text}. They are not evaluated yet."
    ends = min(known, key=lambda row: row.mean_l0.mean), max(known, key=lambda row: row.mean_l0.mean)
    if ends[0].setting == ends[1].setting:
        return f"{text}; mean FVU {_range([row.mean_fvu for row in known])}."
    return f"{text}; mean FVU from {_quality(ends[0], known)} to {_quality(ends[1], known)}."


def _quality(end: SettingSummary, known: Sequence[SettingSummary]) -> str:
    """A setting's FVU, groups and baseline, at its L0."""
    rows = [row for row in known if row.setting == end.setting]
    values = " and ".join(f"{fixed(row.mean_fvu.mean)} ({suite_title(row.kind)})" for row in rows)
    return f"{values} at L0 {fixed(end.mean_l0.mean, 1)}"


def _range(found: Sequence[OverSeeds]) -> str:
    return f"{fixed(min(one.low for one in found))} to {fixed(max(one.high for one in found))}"


def _passes(records: RunRecords) -> str:
    passes = len(records.train.passes) if records.train else 0
    return "one pass over the model" if passes < 2 else f"{passes} passes over the model"


def sweep_figures(records: RunRecords, sweep: Sequence[SettingSummary]) -> list[Fact]:
    """The strip below the title: value, what it is, and what to compare it with."""
    train = records.train
    if not sweep or train is None:
        return []
    facts = [
        (
            str(len({row.setting for row in sweep})),
            "settings",
            ", ".join(dict.fromkeys(r.setting for r in sweep if r.setting)),
        ),
        (str(max(len(row.suites) for row in sweep)), "seeds" if max(len(r.suites) for r in sweep) > 1 else "seed", ""),
        (str(len(train.saes)), "SAEs", f"in {_passes(records)}"),
    ]
    stable = [row.seed_stability for row in sweep if row.seed_stability is not None]
    if stable:
        facts.append((percent(fmean(stable)), "found again", "share of latents, by another seed"))
    facts.append((format_duration(sum(train.seconds.values())), "to train", "all SAEs together"))
    return [*facts, (count(train.num_tokens), "tokens", "seen by each SAE")]


def setting_frame(sweep: Sequence[SettingSummary]) -> Frame | None:
    """A row per setting and kind of suite, over its seeds."""
    if not sweep:
        return None
    columns = (
        Column("setting", "setting", attrgetter("setting")),
        Column("suite", "suite", attrgetter("kind"), suite_title),
        Column("k", "k", attrgetter("k")),
        Column("d_sae", "latents", attrgetter("d_sae"), lambda value: f"{value:,}"),
        *(_over_seeds(name) for name in ("mean_l0", "mean_fvu", "mean_delta_ce")),
        Column.of("seed_stability"),
        Column("on_front", "on the front", lambda row: "yes" if row.on_front else None),
    )
    notes = ["On the front: no other setting has a lower FVU at the same or fewer active latents."]
    if any(len(row.suites) > 1 for row in sweep):
        notes.append(
            "Means over seeds, in brackets the smallest and the largest. Found again: the share of latents that "
            "another seed has too, at a cosine of at least 0.7."
        )
    return Frame("setting-table", "Every setting", sweep, columns, notes=notes).known()


def _over_seeds(name: str) -> Column:
    metric = METRICS[name]
    read: Callable[[SettingSummary], OverSeeds | None] = attrgetter(name)

    def text(row: SettingSummary) -> str:
        found = read(row)
        ends = f" ({metric.text(found.low)} to {metric.text(found.high)})" if found.low != found.high else ""
        return metric.text(found.mean) + ends

    return Column.of(name, value=lambda row: read(row).mean if read(row) else None, row_text=text)


class _GroupSeeds(NamedTuple):
    kind: str
    setting: str
    group: str
    share: float
    pairs: int


def seed_frame(records: RunRecords) -> Frame | None:
    """A row per SAE of every setting: what other seeds find again."""
    rows = []
    for (kind, setting), names in suites_by_setting(records).items():
        if len(names) < 2:
            continue
        for group in records.partitions[names[0]].base.names:
            shares = seed_stabilities(records, names, group)
            if shares:
                rows.append(_GroupSeeds(kind, setting, group, fmean(shares), len(shares)))
    if not rows:
        return None
    columns = (
        Column("group", "group", attrgetter("group"), group_label),
        Column("suite", "suite", attrgetter("kind"), suite_title),
        Column("setting", "setting", attrgetter("setting")),
        Column.of("seed_stability", value=attrgetter("share")),
        Column("pairs", "pairs of seeds", attrgetter("pairs")),
    )
    return Frame("seed-table", "What another seed finds again, for every SAE", rows, columns)
