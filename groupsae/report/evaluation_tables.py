"""The report's tables of circuits and similarity."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from groupsae.analysis.frames import Column, Frame
from groupsae.analysis.run_records import RunRecords, suite_title
from groupsae.estimate import Estimate
from groupsae.metrics import CIRCUITS, SIMILARITY
from groupsae.records.types.circuits import SuiteCircuits
from groupsae.records.types.similarity import DictionaryName, SimilarityRecord, SpreadingRecord
from groupsae.report.figures.similarity import dictionary_label
from groupsae.report.figures.theme import group_label

# ---- circuits


class _TaskSuite(NamedTuple):
    task: str
    suite: str
    found: SuiteCircuits


_ESTIMATES = (
    ("ceiling", "ceiling", "error_removed.ceiling"),
    ("faithfulness_removed", "faithfulness", "error_removed.faithfulness.area"),
    ("completeness_removed", "completeness", "error_removed.completeness.area"),
    ("faithfulness_kept", "faithfulness", "error_kept.faithfulness.area"),
    ("completeness_kept", "completeness", "error_kept.completeness.area"),
)


def circuit_frames(records: RunRecords) -> list[Frame]:
    """What each suite does on every task, and what became of the tasks."""
    tasks = records.circuits.tasks if records.circuits else {}
    if not tasks:
        return []
    rows = [_TaskSuite(name, suite, found) for name, task in tasks.items() for suite, found in task.suites.items()]
    suites = (
        Column("task", "task", attrgetter("task")),
        Column("suite", "suite", attrgetter("suite"), suite_title),
        *(_estimate_column(*each) for each in _ESTIMATES),
    )
    outcomes = (
        Column("task", "task", lambda row: row[0]),
        Column("outcome", "outcome", lambda row: row[1].skipped or "scored"),
        Column("given", "pairs", lambda row: row[1].given),
        Column("used", "used", lambda row: row[1].num_choose + row[1].num_test),
        Column("test", "to test", lambda row: row[1].num_test),
        Column.of("accuracy", CIRCUITS, value=lambda row: row[1].skill.accuracy if row[1].skill else None),
    )
    notes = [
        "In brackets: the 95 % interval over resampled test prompts. Ceiling: what all latents do together, with the "
        "SAEs’ errors removed. Faithfulness and completeness: mean height of their curves over the logarithm of the "
        "circuit’s size."
    ]
    right = ["Right: how often the model itself prefers the right answer; 50 % is chance."]
    first = Frame("circuit-table", "Every task and suite", rows, suites, notes=notes)
    return [*([first] if rows else []), Frame("task-table", "Tasks", list(tasks.items()), outcomes, notes=right)]


def _estimate_column(name: str, title: str, path: str) -> Column:
    head = "SAE errors removed" if path.startswith("error_removed") else "SAE errors kept"
    read: Callable[[SuiteCircuits], Estimate | None] = attrgetter(path)

    def value(row: _TaskSuite) -> float | None:
        estimate = read(row.found)
        return estimate.value if estimate else None

    return Column(name, title, value, head=head, row_text=lambda row: estimate_text(read(row.found)))


def two_decimals(value: float) -> str:
    """Exactly two decimals: three of these must fit into a cell."""
    text = f"{abs(value):.2f}"
    return "−" * (value < 0 and float(text) > 0) + text


def estimate_text(estimate: Estimate, text: Callable[[float], str] = two_decimals) -> str:
    """A value with its interval: `0.90 (0.80 to 1.00)`."""
    return f"{text(estimate.value)} ({text(estimate.low)} to {text(estimate.high)})"


# ---- similarity


def similarity_frames(records: RunRecords) -> list[Frame]:
    """What dictionaries share, what fires together, how latents spread."""
    if records.similarity is None:
        return []
    makers = (_dictionaries, _concordance, _spreading, _stability)
    frames = [make(records.similarity) for make in makers]
    return [frame for frame in frames if frame.rows]


def _full_name(one: DictionaryName) -> str:
    return f"{one.suite}/{one.group}"


class _BestMatch(NamedTuple):
    one: DictionaryName
    best: DictionaryName
    mmcs: float
    mmcs_random: float


def _dictionaries(record: SimilarityRecord) -> Frame:
    """A row per dictionary: the one that holds its directions best."""
    rows = []
    for place, one in enumerate(record.dictionaries if len(record.dictionaries) > 1 else ()):
        value, best = max((value, index) for index, value in enumerate(record.mmcs[place]) if index != place)
        rows.append(_BestMatch(one, record.dictionaries[best], value, record.mmcs_random[best]))
    columns = (
        Column(
            "dictionary", "dictionary", lambda row: _full_name(row.one), row_text=lambda row: dictionary_label(row.one)
        ),
        Column(
            "best_in", "held best by", lambda row: _full_name(row.best), row_text=lambda row: dictionary_label(row.best)
        ),
        Column.of("mmcs", SIMILARITY),
        Column.of("mmcs_random", SIMILARITY),
    )
    return Frame("dictionary-table", "Which dictionary holds each dictionary’s directions best", rows, columns)


def _concordance(record: SimilarityRecord) -> Frame:
    """A row per hookpoint and pair of SAEs that serve it."""
    columns = (
        Column("layer", "layer", attrgetter("hookpoint")),
        Column(
            "saes",
            "SAEs",
            lambda row: f"{_full_name(row.one)} {_full_name(row.other)}",
            row_text=lambda row: f"{dictionary_label(row.one)}, {dictionary_label(row.other)}",
        ),
        *(Column.of(name, SIMILARITY, head="best partner") for name in ("one_in_other", "other_in_one")),
        *(Column.of(name, SIMILARITY, head="silent") for name in ("silent_one", "silent_other")),
    )
    note = (
        "Best partner: for each latent the largest Jaccard index with a latent of the other SAE (tokens on which both "
        "fire, by tokens on which either fires); the mean over latents that fire."
    )
    return Frame("concordance-table", "Which SAEs fire together", record.concordance, columns, notes=[note])


class _Spread(NamedTuple):
    suite: str
    group: str
    found: SpreadingRecord


def _spreading(record: SimilarityRecord) -> Frame:
    """A row per group of several layers."""
    rows = [
        _Spread(suite, group, found) for suite, groups in record.spreading.items() for group, found in groups.items()
    ]
    names = ("entropy", "mean_layer", "one_layer_share", "silent")
    columns = (
        Column("group", "group", attrgetter("group"), group_label),
        Column("suite", "suite", attrgetter("suite"), suite_title),
        *(Column.of(name, SIMILARITY, value=attrgetter(f"found.{name}")) for name in names),
    )
    note = (
        "Evenness: entropy of a latent’s firings over its group’s layers. 0: one layer only. 1: all layers alike. "
        "Silent latents are not counted in the other columns."
    )
    return Frame("spreading-table", "How latents spread over the layers of their group", rows, columns, notes=[note])


def _stability(record: SimilarityRecord) -> Frame:
    """A row per group that two suites have in common."""
    columns = (
        Column("group", "group", attrgetter("group"), group_label),
        Column(
            "suites", "suites", lambda row: f"{row.one} {row.other}", row_text=lambda row: f"{row.one}, {row.other}"
        ),
        *(Column.of(name, SIMILARITY, value=attrgetter(f"matching.{name}")) for name in ("share", "mean_cosine")),
    )
    return Frame("stability-table", "Which latents another suite finds again", record.stability, columns)
