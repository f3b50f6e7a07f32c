"""The transfer experiment as tables in a terminal."""

from __future__ import annotations

from rich.table import Table
from transfer_figures import TITLES
from transfer_results import Mean, TransferResults

from groupsae.cli.tables import titled_table
from groupsae.units import format_duration


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def transfer_tables(results: TransferResults) -> list[Table]:
    """The looks at every direction, warm / from scratch, and the ways to spend a budget."""
    columns = ["tokens", "FVU", "delta CE", "CE score", "L0", "FVU at one L0", "progress: FVU, delta CE, CE score"]
    tables = []
    for direction, looks in results.looks.items():
        table = titled_table(f"{TITLES[direction]}; warm / from scratch", columns, right=columns)
        for look in looks:
            matched = _pair(*(look.matched_fvu or (None, None)), ".4f")
            progress = "  ".join(_number(value, ".2f") for value in look.progress.values())
            scratch = look.scratch or Mean(None, None, None, None)
            pairs = [_pair(*values, form) for *values, form in _looked(look.transfer, scratch)]
            table.add_row(f"{look.tokens:,}" if look.tokens else "zero-shot", *pairs, matched, progress)
        base = results.base_mean(direction)
        table.add_row("base", *(_number(value, form) for value, _, form in _looked(base, base)), "", "", style="bold")
        tables.append(table)
    return [*tables, _budgets(results)]


def _looked(one: Mean, other: Mean) -> list[tuple[float | None, float | None, str]]:
    forms = {"fvu": ".4f", "delta_ce": ".4f", "ce_score": ".4f", "l0": ".1f"}
    return [(getattr(one, key), getattr(other, key), form) for key, form in forms.items()]


def _pair(one: float | None, other: float | None, form: str) -> str:
    return " / ".join(_number(value, form) for value in (one, other) if value is not None)


def _budgets(results: TransferResults) -> Table:
    columns = ("all layers", "tokens per SAE", "TFLOP", "time", "FVU", "delta CE", "CE score", "L0")
    table = titled_table("ways to spend a budget", columns, right=columns[1:])
    for row in results.budgets():
        scores = [_number(value, form) for value, _, form in _looked(row.mean, row.mean)]
        table.add_row(row.name, row.tokens, f"{row.flops / 1e12:.3g}", format_duration(row.seconds), *scores)
    return table
