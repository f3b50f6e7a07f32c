"""Circuits in numbers: what each suite does on every task, and what became of the tasks."""

from __future__ import annotations

from collections.abc import Sequence

from groupsae.report.data import Record
from groupsae.report.tables import SUITE_TITLES, Cell, Fold, SortableTable, plain_table
from groupsae.report.wording import NONE, percent


def circuit_folds(record: Record | None) -> tuple[Fold, ...]:
    """Two tables, of suites and of tasks: `eval/circuits.json`. Nothing without it."""
    if not record or not record["tasks"]:
        return ()
    tables = [table for table in (_suites(record["tasks"]), _tasks(record["tasks"])) if table is not None]
    note = (
        "In brackets the 95 % interval over resampled test prompts. Ceiling: what all latents do together, with the "
        "SAEs’ errors removed. Faithfulness and completeness: mean height of their curves over the logarithm of the "
        "circuit’s size. Right: how often the model itself prefers the right answer, 50 % being chance."
    )
    return (Fold("Every task and suite", tuple(tables), note),)


_ESTIMATES = (
    ("ceiling", "errors removed", "ceiling", ("error_removed", "ceiling")),
    ("faithfulness_removed", "errors removed", "faithfulness", ("error_removed", "faithfulness", "area")),
    ("completeness_removed", "errors removed", "completeness", ("error_removed", "completeness", "area")),
    ("faithfulness_kept", "errors kept", "faithfulness", ("error_kept", "faithfulness", "area")),
    ("completeness_kept", "errors kept", "completeness", ("error_kept", "completeness", "area")),
)


def _suites(tasks: Record) -> SortableTable | None:
    rows = [
        [
            Cell(name, place, name),
            Cell(SUITE_TITLES.get(suite, suite), order, suite),
            *(_estimate(found, keys) for _, _, _, keys in _ESTIMATES),
        ]
        for place, (name, task) in enumerate(tasks.items())
        for order, (suite, found) in enumerate(task["suites"].items())
    ]
    heads = ("", "", *(head for _, head, _, _ in _ESTIMATES))
    names = [("task", "task"), ("suite", "suite"), *((key, title) for key, _, title, _ in _ESTIMATES)]
    return plain_table("circuit-table", names, rows, heads) if rows else None


def _estimate(found: Record, keys: Sequence[str]) -> Cell:
    for key in keys:
        found = found[key]
        if found is None:
            return Cell(NONE, "")
    return Cell(f"{_short(found['value'])} ({_short(found['low'])} to {_short(found['high'])})", found["value"])


def _short(value: float) -> str:
    """Two decimals, without a zero before them: three of these must fit into a cell."""
    text = f"{abs(value):.2f}"
    return "−" * (value < 0 and float(text) > 0) + text.removeprefix("0")


def _tasks(tasks: Record) -> SortableTable:
    rows = []
    for place, (name, task) in enumerate(tasks.items()):
        accuracy = task["skill"] and task["skill"]["accuracy"]
        used = task["num_choose"] + task["num_test"]
        said = task["skipped"] or "scored"
        rows.append(
            [
                Cell(name, place, name),
                Cell(said, said),
                *(Cell(str(count), count) for count in (task["given"], used, task["num_test"])),
                Cell(percent(accuracy), "" if accuracy is None else accuracy),
            ]
        )
    names = [("task", "task"), ("outcome", "outcome"), ("given", "pairs"), ("used", "used"), ("test", "to test")]
    return plain_table("task-table", [*names, ("accuracy", "right")], rows)
