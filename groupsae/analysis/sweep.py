"""A sweep in a few numbers: every SAE setting over its seeds, which of them no other beats, what seeds find again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from statistics import fmean

from groupsae.analysis.run_records import RunRecords, suite_kind
from groupsae.records.types.summary import OverSeeds, SettingSummary, SuiteSummary

SettingKey = tuple[str, str]
"""A kind of suite, and a setting."""


def suites_by_setting(records: RunRecords) -> dict[SettingKey, tuple[str, ...]]:
    """The suites of a sweep by kind and setting, one per seed; empty before training, and where there is no sweep."""
    variants = records.train.variants if records.train else {}
    found: dict[SettingKey, list[str]] = {}
    for name, partition in records.partitions.items():
        if partition.variant in variants:
            key = (suite_kind(name, partition), variants[partition.variant].setting)
            found.setdefault(key, []).append(name)
    return {key: tuple(names) for key, names in found.items()}


def summarize_sweep(records: RunRecords, summaries: Sequence[SuiteSummary]) -> tuple[SettingSummary, ...]:
    """A row per kind and setting of a sweep; those on the front of their kind are marked."""
    by_name = {one.name: one for one in summaries}
    rows = [
        _summarize(records, key, [by_name[name] for name in names if name in by_name])
        for key, names in suites_by_setting(records).items()
    ]
    return tuple(row.model_copy(update={"on_front": _on_front(row, rows)}) for row in rows)


def _summarize(records: RunRecords, key: SettingKey, suites: Sequence[SuiteSummary]) -> SettingSummary:
    kind, setting = key
    names = tuple(one.name for one in suites)
    variant = records.train.variants[records.partitions[names[0]].variant]
    stabilities = seed_stabilities(records, names)
    return SettingSummary(
        kind=kind,
        setting=setting,
        suites=names,
        k=variant.k,
        d_sae=variant.d_sae,
        mean_l0=over_seeds(one.mean_l0 for one in suites),
        mean_fvu=over_seeds(one.mean_fvu for one in suites),
        mean_delta_ce=over_seeds(one.mean_delta_ce for one in suites),
        seed_stability=fmean(stabilities) if stabilities else None,
    )


def over_seeds(values: Iterable[float | None]) -> OverSeeds | None:
    """The mean and the ends of some values; None if one is not known."""
    found = list(values)
    if not found or None in found:
        return None
    return OverSeeds(mean=fmean(found), low=min(found), high=max(found))


def seed_stabilities(records: RunRecords, suites: Collection[str], group: str = "") -> list[float]:
    """The share of latents found again, by SAE and pair of suites of which one is among these; of one group only.

    The other differs from it in the seed only.
    """
    rows = records.similarity.stability if records.similarity else ()
    partners = {name: set(names) for names in suites_by_setting(records).values() for name in names if len(names) > 1}
    return [
        row.matching.share
        for row in rows
        if group in ("", row.group)
        and row.other in partners.get(row.one, ())
        and (row.one in suites or row.other in suites)
    ]


def _on_front(row: SettingSummary, rows: Sequence[SettingSummary]) -> bool:
    if row.mean_l0 is None or row.mean_fvu is None:
        return False
    return not any(
        other.mean_l0.mean <= row.mean_l0.mean and other.mean_fvu.mean < row.mean_fvu.mean
        for other in rows
        if other.kind == row.kind and other.mean_l0 is not None and other.mean_fvu is not None
    )
