"""Similarity in numbers: how far dictionaries share directions and firing, and how latents spread over layers."""

from __future__ import annotations

from groupsae.report.data import Record
from groupsae.report.figures.similarity import dictionary_label
from groupsae.report.figures.theme import group_label
from groupsae.report.tables import SUITE_TITLES, Cell, Fold, SortableTable, plain_table, value_cell

_NOTE = (
    "Best partner: for each latent the largest Jaccard index, tokens on which both fire by tokens on which either "
    "does, of the latents of the other SAE; the mean over latents that fire. Evenness: entropy of a latent’s firings "
    "over its group’s layers, 0 for one layer only and 1 for all alike. Silent latents count nowhere."
)


def similarity_folds(record: Record | None) -> tuple[Fold, ...]:
    """What dictionaries share, what fires together, how latents spread: `eval/similarity.json`. Nothing without it."""
    if not record:
        return ()
    makers = (_dictionaries, _concordance, _spreading, _stability)
    tables = [table for table in (make(record) for make in makers) if table is not None]
    return (Fold("What dictionaries share, in numbers", tuple(tables), _NOTE),) if tables else ()


def _copied(dictionary: Record) -> str:
    return f"{dictionary['suite']}/{dictionary['group']}"


def _dictionaries(record: Record) -> SortableTable | None:
    """A row per dictionary: the one that holds its directions best."""
    every = record["dictionaries"]
    if len(every) < 2:
        return None
    rows = []
    for place, one in enumerate(every):
        others = [(value, index) for index, value in enumerate(record["mmcs"][place]) if index != place]
        value, best = max(others)
        rows.append(
            [
                Cell(dictionary_label(one), place, _copied(one)),
                Cell(dictionary_label(every[best]), best, _copied(every[best])),
                value_cell(value, 3),
                value_cell(record["mmcs_random"][best], 3),
            ]
        )
    names = [("dictionary", "dictionary"), ("best_in", "held best by"), ("mmcs", "MMCS"), ("random", "at random")]
    return plain_table("dictionary-table", names, rows)


def _concordance(record: Record) -> SortableTable | None:
    """A row per hookpoint and pair of SAEs that serve it."""
    rows = [
        [
            Cell(row["hookpoint"], place, row["hookpoint"]),
            Cell(
                f"{dictionary_label(row['one'])}, {dictionary_label(row['other'])}",
                place,
                f"{_copied(row['one'])} {_copied(row['other'])}",
            ),
            value_cell(row["one_in_other"], 3),
            value_cell(row["other_in_one"], 3),
            *(Cell(str(row[key]), row[key]) for key in ("silent_one", "silent_other")),
        ]
        for place, row in enumerate(record["concordance"])
    ]
    names = [
        ("layer", "layer"), ("saes", "SAEs"), ("one_in_other", "of the first"), ("other_in_one", "of the second"),
        ("silent_one", "first"), ("silent_other", "second"),
    ]  # fmt: skip
    heads = ("", "", "best partner", "best partner", "silent", "silent")
    return plain_table("concordance-table", names, rows, heads) if rows else None


def _spreading(record: Record) -> SortableTable | None:
    """A row per group of several layers."""
    rows = []
    for suite, groups in record["spreading"].items():
        for group, found in groups.items():
            title = SUITE_TITLES.get(suite, suite)
            rows.append(
                [
                    Cell(group_label(group), len(rows), group),
                    Cell(title, title, suite),
                    value_cell(found["entropy"], 3),
                    value_cell(found["mean_layer"], 2),
                    value_cell(found["one_layer_share"], 3),
                    Cell(str(found["silent"]), found["silent"]),
                ]
            )
    names = [
        ("group", "group"), ("suite", "suite"), ("entropy", "evenness"), ("mean_layer", "mean layer"),
        ("one_layer_share", "one layer only"), ("silent", "silent"),
    ]  # fmt: skip
    return plain_table("spreading-table", names, rows) if rows else None


def _stability(record: Record) -> SortableTable | None:
    """A row per group that two suites have in common."""
    rows = [
        [
            Cell(group_label(row["group"]), place, row["group"]),
            Cell(f"{row['one']}, {row['other']}", place, f"{row['one']} {row['other']}"),
            value_cell(row["matching"]["share"], 3),
            value_cell(row["matching"]["mean_cosine"], 3),
        ]
        for place, row in enumerate(record["stability"])
    ]
    names = [("group", "group"), ("suites", "suites"), ("share", "found again"), ("mean_cosine", "mean cosine")]
    return plain_table("stability-table", names, rows) if rows else None
