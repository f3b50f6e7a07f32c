"""The table of scores of latents that need no judge: one row per suite and score."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from groupsae.analysis.frames import Column, Frame
from groupsae.analysis.run_records import RunRecords, suite_title
from groupsae.metrics import INTERPRETABILITY, fixed
from groupsae.records.types.interpretability import InterpretabilityRecord
from groupsae.records.types.measured import Difference, OverLayers


class _Row(NamedTuple):
    score: str
    suite: str
    found: OverLayers
    difference: Difference | None
    matched_difference: Difference | None


def interpretability_frame(records: RunRecords) -> Frame | None:
    """Means over layers of every score by suite, with intervals; None before `eval interpretability`."""
    record = records.interpretability
    if record is None:
        return None
    rows = [_row(record, name, suite) for name in INTERPRETABILITY for suite in record.layers]
    columns = (
        Column("score", "score", attrgetter("score"), lambda name: INTERPRETABILITY[name].title),
        Column("suite", "suite", attrgetter("suite"), suite_title),
        Column("mean", "mean", attrgetter("found.mean"), row_text=lambda row: _text(row.found)),
        Column("difference", "difference", _mean("difference"), row_text=lambda row: _text(row.difference)),
        Column(
            "matched_difference",
            "difference",
            _mean("matched_difference"),
            head="at equal firing rates",
            row_text=lambda row: _text(row.matched_difference),
        ),
    )
    notes = [
        f"Over {record.num_tokens:,} {record.text} tokens; in brackets the 95 % interval over latents. At equal firing "
        f"rates: latents are weighted so that at each layer they fire as often as those of {record.compared_with}. "
        "docs/metrics.md has the formulas."
    ]
    return Frame("interpretability-table", "Scores of latents that need no judge", rows, columns, notes=notes)


def _row(record: InterpretabilityRecord, name: str, suite: str) -> _Row:
    return _Row(
        name,
        suite,
        record.layers[suite][name],
        record.differences.get(suite, {}).get(name),
        record.matched_differences.get(suite, {}).get(name),
    )


def _mean(field: str) -> Callable[[_Row], float | None]:
    def read(row: _Row) -> float | None:
        found = getattr(row, field)
        return found.mean if found else None

    return read


def _text(found: OverLayers | Difference) -> str:
    if found.interval is None:
        return fixed(found.mean)
    low, high = found.interval
    return f"{fixed(found.mean)} ({fixed(low)} to {fixed(high)})"
