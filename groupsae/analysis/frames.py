"""Tables as rows with a list of columns: what the report and the terminal both show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from groupsae.analysis.candidates import PlanView
from groupsae.analysis.run_records import GROUPS, suite_title
from groupsae.hookpoints import natural_key
from groupsae.metrics import METRICS, Metric, change, percent
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.summary import SuiteSummary

NONE = "–"
"""Shown for a value that is not known."""


class Cell(NamedTuple):
    """What a cell shows, the number it sorts by (empty: last), and what is copied as CSV."""

    text: str
    sort: float | str
    copied: float | str


@dataclass(frozen=True)
class Column:
    """A column: its CSV name, its title, and how a row's value is found and written."""

    name: str
    title: str
    value: Callable[[Any], float | str | None]
    text: Callable[[Any], str] = str
    """Writes a value that is not None."""
    head: str = ""
    """A title over neighboring columns that share it."""
    row_text: Callable[[Any], str] | None = None
    """Writes a cell from its row, where the value alone does not say all."""

    @classmethod
    def of(cls, metric: str, table: Mapping[str, Metric] = METRICS, /, **changes: Any) -> Column:
        """The column of a metric: by default the row's attribute of that name."""
        found = table[metric]
        return replace(cls(found.name, found.title, attrgetter(found.name), found.text), **changes)


@dataclass(frozen=True)
class Frame:
    """A table: rows of any kind, and the columns that read them."""

    key: str
    title: str
    rows: Sequence[Any]
    columns: Sequence[Column]
    marked: frozenset[int] = frozenset()
    """Rows that stand out."""
    notes: Sequence[str] = field(default=())

    def known(self) -> Frame:
        """The table without the columns that are empty in every row."""
        shown = tuple(one for one in self.columns if any(one.value(row) is not None for row in self.rows))
        return replace(self, columns=shown)

    @property
    def heads(self) -> list[tuple[str, int]]:
        """The titles over the columns, each with the number of its columns."""
        return [(head, len(list(same))) for head, same in groupby(column.head for column in self.columns)]

    @property
    def firsts(self) -> set[int]:
        """The columns with which a head begins."""
        widths = [width for _, width in self.heads]
        return {sum(widths[:index]) for index in range(1, len(widths))}

    @property
    def cells(self) -> list[list[Cell]]:
        """The cells, row by row. Texts sort in natural order."""
        columns = [self._cells_of(column) for column in self.columns]
        return [list(row) for row in zip(*columns, strict=True)]

    def _cells_of(self, column: Column) -> list[Cell]:
        values = [column.value(row) for row in self.rows]
        names = sorted({value for value in values if isinstance(value, str)}, key=natural_key)
        place = {name: index for index, name in enumerate(names)}
        cells = []
        for row, value in zip(self.rows, values, strict=True):
            if value is None:
                cells.append(Cell(NONE, "", ""))
                continue
            text = column.row_text(row) if column.row_text else column.text(value)
            cells.append(Cell(text, place[value] if isinstance(value, str) else value, value))
        return cells


# ---- suites


SUITE_COLUMNS = (
    Column("suite", "suite", attrgetter("name"), suite_title),
    Column.of("num_saes"),
    Column.of("mean_fvu", head="quality"),
    Column.of("mean_delta_ce", title="ΔCE", head="quality"),
    Column.of("all_layers_delta_ce", title="all layers", head="quality"),
    Column.of("mean_kl", title="KL", head="quality"),
    Column.of("num_tokens", head="cost"),
    Column.of("published_mflop", title="MFLOP", head="cost"),
    Column.of("own_mflop", title="ours", head="cost"),
    Column.of("published_pflop", title="in all", head="cost"),
    Column.of("seconds", head="cost"),
    Column.of("memory_bytes", head="cost"),
)


def suite_frame(key: str, title: str, summaries: Sequence[SuiteSummary]) -> Frame:
    """Quality beside cost, a row per suite; the note says at equal what."""
    notes = [note] if (note := equal_tokens(summaries)) else []
    return Frame(key, title, summaries, SUITE_COLUMNS, notes=notes).known()


def equal_tokens(summaries: Sequence[SuiteSummary]) -> str:
    """At equal what the suites' quality is compared; empty for one suite, or without quality."""
    if len(summaries) < 2 or all(one.mean_fvu is None and one.mean_delta_ce is None for one in summaries):
        return ""
    tokens = {one.num_tokens for one in summaries}
    if tokens == {None}:
        return ""
    if len(tokens) > 1:
        return "The suites saw different numbers of tokens per SAE, so neither tokens nor FLOPs are equal."
    text = f"Quality is compared at equal tokens: every SAE saw {METRICS['num_tokens'].text(tokens.pop())} tokens"
    first, last = summaries[0], summaries[-1]
    if last.name == GROUPS and first.own_mflop and last.own_mflop:
        share = last.own_mflop / first.own_mflop
        text += (
            f", which cost the groups {percent(share)} of the baseline’s FLOPs by our count. They would cost as much "
            f"with {1 / share:.2f} times the tokens, in a run of their own (train.baseline = false)"
        )
    return text + "."


# ---- candidates


def candidate_frame(plan: PlanView) -> Frame:
    """A row per candidate of the run's method; what the plan does not say of any has no column."""
    columns = (
        Column.of("num_groups"),
        Column("chosen_by", "chosen by", lambda one: chosen_by(plan, one)),
        *(Column.of(name, head="distance inside groups") for name in ("amad", "size_weighted_amad")),
        Column.of("largest_diameter", head="distance inside groups"),
        Column.of("published_mflop", title="total", head="published MFLOP"),
        _saving(plan, "published", "published MFLOP"),
        Column.of("own_mflop", title="total", head="our MFLOP"),
        _saving(plan, "own", "our MFLOP"),
        *(Column.of(name, head="training takes") for name in ("seconds", "memory_bytes", "disk_bytes")),
        *_predictions(plan),
    )
    marked = frozenset(place for place, one in enumerate(plan.own) if one == plan.choice)
    return Frame("candidate-table", "The cost of every number of groups", plan.own, columns, marked).known()


def chosen_by(plan: PlanView, candidate: Candidate) -> str:
    """Who takes a candidate: the run, the published rule, or both."""
    run = candidate == plan.choice
    published = plan.published is not None and candidate.partition == plan.published.partition
    return ", ".join(who for who, takes in (("run", run), ("published rule", published)) if takes)


def _saving(plan: PlanView, name: str, head: str) -> Column:
    read, alone = attrgetter(f"{name}_mflop"), plan.singletons

    def value(candidate: Candidate) -> float | None:
        cost, whole = read(candidate), alone and read(alone)
        return None if cost is None or not whole else 1 - cost / whole

    return Column(f"{name}_saving", "saving", value, percent, head)


def _predictions(plan: PlanView) -> list[Column]:
    if plan.quality is None:
        return []
    key, head = plan.quality, "predicted FVU" if plan.quality == "fvu" else "predicted FVU increase"
    text = METRICS["amad"].text if key == "fvu" else change
    ends = (("value", "value", key), ("low", "from", f"{key}_low"), ("high", "to", f"{key}_high"))
    return [Column(name, title, attrgetter(f"{key}.{end}"), text, head) for end, title, name in ends]
