"""The evaluation's own tables and sentences: cost beside quality, groups, further measures, other runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from groupsae.partition import group_name
from groupsae.records import RunDirectory
from groupsae.report.comparison import Comparison, compare, read_against
from groupsae.report.data import BASELINE, GROUPS, Record, RunData
from groupsae.report.figures.theme import group_label, in_order
from groupsae.report.readings import Readings
from groupsae.report.summary import SuiteSummary
from groupsae.report.tables import SUITE_TITLES, Cell, Fold, SortableTable, plain_table, value_cell
from groupsae.report.wording import count, duration, fixed, flops, percent, size

_Show = Callable[[float | None], str]


@dataclass(frozen=True)
class Standing:
    """A comparison on the page: its table of suites, and its readings as sentences."""

    title: str
    table: SortableTable
    sentences: tuple[str, ...]


_COLUMNS: tuple[tuple[str, str, str, _Show], ...] = (
    ("", "num_saes", "SAEs", lambda value: fixed(value, 0)),
    ("quality", "mean_fvu", "FVU", lambda value: fixed(value, 4)),
    ("quality", "mean_delta_ce", "ΔCE", lambda value: fixed(value, 4)),
    ("quality", "all_layers_delta_ce", "all layers", lambda value: fixed(value, 4)),
    ("quality", "mean_kl", "KL", lambda value: fixed(value, 4)),
    ("cost", "num_tokens", "tokens", count),
    ("cost", "mflop_per_token", "MFLOP", lambda value: fixed(value, 1)),
    ("cost", "own_mflop_per_token", "ours", lambda value: fixed(value, 1)),
    ("cost", "total_pflop", "in all", flops),
    ("cost", "seconds", "time", duration),
    ("cost", "memory_bytes", "memory", size),
)


def standing(data: RunData) -> Standing | None:
    """Cost beside quality of this run's suites; None before anything is trained."""
    if data.train is None or not data.partitions:
        return None
    return _standing("Quality beside cost", "suite-table", compare(data))


def against(run: RunDirectory) -> list[Standing]:
    """The same for every comparison with another run."""
    return [
        _standing(f"Beside the suites of {found.label}", f"against-table-{place}", found)
        for place, found in enumerate(read_against(run))
    ]


def _standing(title: str, key: str, comparison: Comparison) -> Standing:
    shown = [one for one in _COLUMNS if any(getattr(suite, one[1]) is not None for suite in comparison.summaries)]
    heads: list[tuple[str, int]] = [("", 1)]
    for head, *_ in shown:
        heads = [*heads[:-1], (head, heads[-1][1] + 1)] if heads[-1][0] == head else [*heads, (head, 1)]
    rows = tuple(_suite_row(place, suite, shown) for place, suite in enumerate(comparison.summaries))
    columns = (("suite", "suite"), *((name, text) for _, name, text, _ in shown))
    sentences = tuple(_sentence(one) for one in comparison.readings)
    return Standing(title, SortableTable(key, tuple(heads), columns, rows), sentences)


def _suite_row(place: int, suite: SuiteSummary, shown: Sequence[tuple[str, str, str, _Show]]) -> tuple[Cell, ...]:
    cells = [Cell(SUITE_TITLES.get(suite.name, suite.name), place, suite.name)]
    for _, name, _, show in shown:
        value = getattr(suite, name)
        cells.append(Cell(show(value), "" if value is None else value))
    return tuple(cells)


def _sentence(found: Readings) -> str:
    """Equal quality and equal cost, in words."""
    one, other = (SUITE_TITLES.get(name, name) for name in (found.one, found.other))
    (mine, its), (my_fvu, its_fvu) = found.flops_at_fvu, found.fvu_at_flops
    parts = []
    if mine is not None and its is not None:
        parts.append(
            f"At equal quality, FVU {fixed(found.fvu)}: {one} after {flops(mine / 1e15)}, {other} after "
            f"{flops(its / 1e15)}, so at {percent(mine / its)} of the cost."
        )
    if my_fvu is not None and its_fvu is not None:
        parts.append(
            f"At equal cost, {flops(found.flops / 1e15)}: FVU {fixed(my_fvu)} for {one}, {fixed(its_fvu)} for {other}."
        )
    return " ".join(parts) or f"The training curves of {one} and {other} do not meet at the full learning rate."


STANDING_NOTE = (
    "Suites as if trained alone. MFLOP are per token of the language model, by the paper’s count and by ours; memory "
    "is what the plan predicts. Readings at equal quality and cost are by our count, from the FVU on the training "
    "stream, up to where the learning rate begins to fall; between logged points ln FVU is taken as linear in ln FLOP."
)


# ---- folded


def folds(data: RunData) -> tuple[Fold, ...]:
    """What not everybody wants to see: groups, further measures, special positions, densities."""
    found = [_groups(data), _more_layers(data), _scopes(data), _density(data)]
    return tuple(fold for fold in found if fold is not None)


_GROUP_MEASURES = (("fvu", "FVU"), ("delta_ce", "ΔCE"), ("kl", "KL"), ("dead_share", "dead"))


def _groups(data: RunData) -> Fold | None:
    """A row per group: mean and worst layer."""
    records = [(record or {}).get("groups", {}).get(GROUPS) for record in (data.reconstruction, data.losses)]
    if data.chosen is None or not any(records):
        return None
    rows = []
    for place, group in enumerate(data.chosen.groups):
        name = group_name(group)
        measured: Record = {}
        for record in records:
            measured |= (record or {}).get(name, {})
        cells = [Cell(group_label(name), place, name), Cell(str(len(group)), len(group))]
        for measure, _ in _GROUP_MEASURES:
            row = measured.get(measure, {})
            cells += [value_cell(row.get("mean")), value_cell(row.get("worst"))]
        rows.append(cells)
    names = [("group", "group"), ("layers", "layers")]
    for measure, title in _GROUP_MEASURES:
        names += [(f"{measure}_mean", title), (f"{measure}_worst", "worst")]
    return Fold("Every group, mean and worst layer", (plain_table("group-table", names, rows),), "")


_MORE = (
    ("explained_variance_per_token", "explained per token"),
    ("l1", "L1"),
    ("l2_ratio", "L2 ratio"),
    ("relative_reconstruction_bias", "bias"),
    ("dense_share", "dense"),
    ("silent_share", "silent"),
    ("kl_score", "KL score"),
    ("ce_score_mean", "CE score, mean abl."),
    ("kl_score_mean", "KL score, mean abl."),
)


def _more_layers(data: RunData) -> Fold | None:
    """A row per suite and layer with the measures that the table of layers has no room for."""
    suites = [name for name in (BASELINE, GROUPS) if name in data.partitions]
    found = {(suite, key): data.measured(suite, key) for suite in suites for key, _ in _MORE}
    shown = [(key, title) for key, title in _MORE if any(found[suite, key] for suite in suites)]
    if not shown:
        return None
    rows = [
        [
            Cell(layer, place, layer),
            Cell(SUITE_TITLES[suite], suites.index(suite), suite),
            *(value_cell(found[suite, key].get(layer), 3) for key, _ in shown),
        ]
        for place, layer in enumerate(in_order(data.hookpoints))
        for suite in suites
    ]
    table = plain_table("more-table", [("layer", "layer"), ("suite", "suite"), *shown], rows)
    note = "Definitions, and what other tools print under these names, are in docs/metrics.md."
    return Fold("Further measures of every layer", (table,), note)


_SCOPED = (("fvu", "FVU"), ("cosine", "cosine"), ("l0", "L0"), ("delta_ce", "ΔCE"), ("kl", "KL"))


def _scopes(data: RunData) -> Fold | None:
    """Means over layers with special positions left out, and counted."""
    records = [record for record in (data.reconstruction, data.losses) if record and record.get("other_scope")]
    if not records:
        return None
    rows = []
    for suite_place, suite in enumerate(records[0]["suites"]):
        for scope_place, beside in enumerate((False, True)):
            measured: Record = {}
            for record in records:
                measured |= (record["other_scope"] if beside else record)["layers"].get(suite, {})
            scope = (records[0]["other_scope"] if beside else records[0])["scope"]
            cells = [Cell(SUITE_TITLES.get(suite, suite), suite_place, suite), Cell(scope, scope_place, scope)]
            rows.append([*cells, *(value_cell(measured.get(key, {}).get("mean")) for key, _ in _SCOPED)])
    table = plain_table("scope-table", [("suite", "suite"), ("positions", "positions"), *_SCOPED], rows)
    note = "Special tokens begin and end a text, or pad it. The first row of a suite is what stands everywhere else."
    return Fold("With and without special positions", (table,), note)


def _density(data: RunData) -> Fold | None:
    """Latents by the share of tokens on which they fire, summed over layers."""
    if not data.reconstruction or "density_edges" not in data.reconstruction:
        return None
    edges, suites = data.reconstruction["density_edges"], data.reconstruction["suites"]
    totals = {
        name: [sum(counts) for counts in zip(*(layer["density"] for layer in layers.values()), strict=True)]
        for name, layers in suites.items()
    }
    rows = []
    for place, (low, high) in enumerate(pairwise(edges)):
        counts = [total[place] for total in totals.values()]
        if any(counts):
            text = f"{percent(low, 4)} to {percent(high, 4)}"
            rows.append([Cell(text, low), *(Cell(f"{number:,}", number) for number in counts)])
    names = [("share_of_tokens", "fires on"), *((name, SUITE_TITLES.get(name, name)) for name in totals)]
    table = plain_table("density-table", names, rows)
    return Fold("How often latents fire", (table,), "Numbers of latents, each counted at every layer that it serves.")
