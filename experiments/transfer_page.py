"""The report of the transfer experiment: one self-contained HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup
from transfer_figures import TITLES, transfer_curves, zero_shot_map
from transfer_results import RECORD, Look, Mean, TransferResults

from groupsae.records import RunDirectory
from groupsae.report.wording import NONE, count, duration, fixed, flops

_HERE = Path(__file__).parent
PAGE = "report/transfer.html"


@dataclass(frozen=True)
class Table:
    """A table as text: the first cell of each row names it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_transfer_report(run: RunDirectory) -> Path:
    """Writes the report of a run's transfer experiment and returns its path."""
    results = TransferResults(run.read_json(RECORD))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tokens = results.record["num_tokens"]
    text = environment.get_template("transfer.html").render(
        name=run.config.name,
        headline=headline(results),
        looks=[look_table(results, direction) for direction in results.looks],
        budgets=budget_table(results),
        drawings=[transfer_curves(results), zero_shot_map(results)],
        tokens={key: count(value) for key, value in tokens.items()},
        style=Markup((files("groupsae.report") / "style.css").read_text(encoding="utf-8")),
    )
    run.write_text(PAGE, text)
    return run.file(PAGE)


def headline(results: TransferResults) -> str:
    """The experiment in one sentence: FVU at the end of each direction, from scratch and of the base."""
    parts = []
    for direction, looks in results.looks.items():
        end = looks[-1]
        scratch = end.scratch.fvu if end.scratch else None
        base = results.base_mean(direction).fvu
        parts.append(
            f"{direction} {fixed(end.transfer.fvu)} against {fixed(scratch)} from scratch (base {fixed(base)})"
        )
    return f"Mean FVU after {count(results.record['num_tokens']['transfer'])} tokens: {'; '.join(parts)}."


LOOK_COLUMNS = (
    "tokens", "FVU", "scratch", "ΔCE", "scratch", "CE score", "scratch", "L0", "scratch",
    "FVU at one L0", "scratch", "progress: FVU", "ΔCE", "CE score",
)  # fmt: skip


def look_table(results: TransferResults, direction: str) -> Table:
    """Every look at a direction beside scratch, with the base SAEs as the last row."""
    rows = [_look_row(look) for look in results.looks[direction]]
    base = results.base_mean(direction)
    rows.append(("base", *(cell for value in _values(base) for cell in (value, "")), "", "", *[fixed(1.0, 2)] * 3))
    return Table(TITLES[direction], LOOK_COLUMNS, tuple(rows))


def budget_table(results: TransferResults) -> Table:
    """Every way to spend a budget on all layers."""
    rows = [
        (
            budget.name,
            budget.tokens,
            flops(budget.flops / 1e15),
            duration(budget.seconds),
            fixed(budget.mean.fvu, 4),
            fixed(budget.mean.delta_ce, 4),
            fixed(budget.mean.ce_score, 4),
            fixed(budget.mean.l0, 1),
        )
        for budget in results.budgets()
    ]
    columns = ("way", "tokens per SAE", "operations", "time", "FVU", "ΔCE", "CE score", "L0")
    return Table("Ways to spend a budget on all layers", columns, tuple(rows))


def _look_row(look: Look) -> tuple[str, ...]:
    scratch = _values(look.scratch) if look.scratch else ("",) * 4
    pairs = [cell for pair in zip(_values(look.transfer), scratch, strict=True) for cell in pair]
    matched = [fixed(value, 4) for value in look.matched_fvu] if look.matched_fvu else ["", ""]
    progress = [NONE if value is None else fixed(value, 2) for value in look.progress.values()]
    return (f"{look.tokens:,}" if look.tokens else "zero-shot", *pairs, *matched, *progress)


def _values(mean: Mean) -> tuple[str, ...]:
    return fixed(mean.fvu, 4), fixed(mean.delta_ce, 4), fixed(mean.ce_score, 4), fixed(mean.l0, 1)
