"""The report's tables: the suites side by side, every layer, and the facts of the run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from groupsae.hookpoints import natural_key
from groupsae.partition import group_name
from groupsae.records import RunDirectory
from groupsae.report.data import BASELINE, GROUPS, RunData
from groupsae.report.figures.theme import group_label, in_order
from groupsae.report.summary import SuiteSummary
from groupsae.report.wording import NONE, WIDE, count, duration, fixed, flops, percent

SUITE_TITLES = {BASELINE: "one SAE per layer", GROUPS: "groups"}


@dataclass(frozen=True)
class Measure:
    """A row of the summary table: what it is, how it is defined, and a value per suite."""

    name: str
    meaning: str
    values: tuple[str, ...]
    change: str


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table: what is shown, the value it sorts by, and what is copied (without it, the value)."""

    text: str
    value: str | float
    copied: str | None = None


@dataclass(frozen=True)
class SortableTable:
    """A table to sort and copy: `heads` are (what, columns), `columns` (CSV name, title); `marked` rows stand out."""

    key: str
    heads: tuple[tuple[str, int], ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    marked: frozenset[int] = frozenset()

    @property
    def firsts(self) -> set[int]:
        """The columns with which a head begins."""
        widths = [width for _, width in self.heads]
        return {sum(widths[:index]) for index in range(1, len(widths))}


@dataclass(frozen=True)
class Fold:
    """Tables that are folded away under a title."""

    title: str
    tables: tuple[SortableTable, ...]
    note: str


def plain_table(
    key: str, names: Sequence[tuple[str, str]], rows: Sequence[Sequence[Cell]], heads: Sequence[str] = ()
) -> SortableTable:
    """A table whose columns have these names; those side by side under one head, if heads are given, share it."""
    widths = [(head, len(list(same))) for head, same in groupby(heads or [""] * len(names))]
    return SortableTable(key, tuple(widths), tuple(names), tuple(map(tuple, rows)))


def value_cell(value: float | None, digits: int = 4) -> Cell:
    """A number with this many decimals."""
    return Cell(fixed(value, digits), "" if value is None else value)


def _ratio(value: float, reference: float) -> str:
    return f"× {value / reference:.2f}" if reference else NONE


def _difference(digits: int, scale: float = 1.0, unit: str = "") -> Callable[[float, float], str]:
    def change(value: float, reference: float) -> str:
        text = fixed(scale * (value - reference), digits)
        return ("" if text.startswith("−") or value == reference else "+") + text + unit

    return change


_MEASURES = (
    ("SAEs", "one per group", "num_saes", lambda value: str(value), _ratio),
    ("FVU", "variance unexplained, mean over layers", "mean_fvu", lambda value: fixed(value, 4), _difference(4)),
    ("Worst FVU", "the layer that is reconstructed worst", "worst_fvu", lambda value: fixed(value, 4), _difference(4)),
    ("Cosine", "between activation and reconstruction", "mean_cosine", lambda value: fixed(value, 4), _difference(4)),
    ("ΔCE, nats", "loss with one layer replaced, less the clean loss", "mean_delta_ce",
     lambda value: fixed(value, 4), _difference(4)),
    ("CE score", "1 is the clean loss, 0 the layer set to zero", "mean_ce_score",
     lambda value: fixed(value, 4), _difference(4)),
    ("KL, nats", "from the clean to the spliced prediction", "mean_kl", lambda value: fixed(value, 4), _difference(4)),
    ("ΔCE of all layers, nats", "every layer replaced at once", "all_layers_delta_ce",
     lambda value: fixed(value, 4), _difference(4)),
    ("L0", "mean active latents", "mean_l0", lambda value: fixed(value, 1), _difference(1)),
    ("Dead latents", "share of the dictionary", "mean_dead_share",
     lambda value: percent(value, 1), _difference(1, 100, f"{WIDE}pp")),
    ("MFLOP per token", "language model once, one dense step per SAE", "mflop_per_token",
     lambda value: fixed(value, 1), _ratio),
    ("Operations in all", "over all training tokens", "total_pflop", flops, _ratio),
    ("Training time", "measured, as if trained alone", "seconds", duration, _ratio),
)  # fmt: skip


def summary_table(summaries: list[SuiteSummary]) -> list[Measure]:
    """A row per measure with a value per suite and the change from baseline to groups; unmeasured rows are left out."""
    suites = {summary.name: summary for summary in summaries}
    rows = []
    for name, meaning, key, show, change in _MEASURES:
        values = [getattr(summary, key) for summary in summaries]
        if all(value is None for value in values):
            continue
        texts = [NONE if value is None else show(value) for value in values]
        texts = [_with_margin(text, summary, key) for text, summary in zip(texts, summaries, strict=True)]
        if key == "worst_fvu":
            texts = [
                f"{text} ({summary.worst_layer})" if summary.worst_layer else text
                for text, summary in zip(texts, summaries, strict=True)
            ]
        pair = [getattr(suites[name], key) for name in (GROUPS, BASELINE)] if {GROUPS, BASELINE} <= set(suites) else []
        changed = change(*pair) if pair and None not in pair else ""
        if changed and key in suites[GROUPS].changes:
            changed += _margin(suites[GROUPS].changes[key])
        rows.append(Measure(name, meaning, tuple(texts), changed))
    return rows


def _with_margin(text: str, summary: SuiteSummary, key: str) -> str:
    return text + _margin(summary.intervals[key]) if key in summary.intervals else text


def _margin(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{WIDE}±{WIDE}{fixed((high - low) / 2, 4)}"


_LAYER_MEASURES = (
    ("fvu", "FVU", 4),
    ("cosine", "cosine", 4),
    ("delta_ce", "ΔCE, nats", 4),
    ("ce_score", "CE score", 4),
    ("kl", "KL, nats", 4),
    ("l0", "L0", 1),
    ("dead_share", "dead", 3),
)


def layer_table(data: RunData) -> SortableTable | None:
    """A row per layer, for each measure a column per suite."""
    suites = [name for name in (BASELINE, GROUPS) if any(data.measured(name, key) for key, _, _ in _LAYER_MEASURES)]
    if not suites:
        return None
    found = {
        (key, suite): data.measured(suite, key)
        for key, _, _ in _LAYER_MEASURES
        for suite in suites
        if data.measured(suite, key)
    }
    shown = [measure for measure in _LAYER_MEASURES if any((measure[0], suite) in found for suite in suites)]
    heads = [("", 2)]
    columns = [("layer", "layer"), ("group", "group")]
    for key, title, _ in shown:
        heads.append((title, len(suites)))
        columns += [(f"{key}_{suite}", "own" if suite == BASELINE else suite) for suite in suites]
    rows = []
    for place, layer in enumerate(in_order(data.hookpoints)):
        group = data.chosen.group_of(layer) if data.chosen and layer in data.chosen.hookpoints else (layer,)
        name = group_name(group)
        index = data.chosen.index_of(layer) if data.chosen else place
        cells = [Cell(layer, place, layer), Cell(group_label(name), index, name)]
        for key, _, digits in shown:
            for suite in suites:
                value = found.get((key, suite), {}).get(layer)
                cells.append(Cell(fixed(value, digits), "" if value is None else value))
        rows.append(tuple(cells))
    return SortableTable("layer-table", tuple(heads), tuple(columns), tuple(rows))


def missing_stages(run: RunDirectory) -> list[tuple[str, str, str]]:
    """Stages that are missing or out of date: stage, `missing` or `stale`, and the command that makes it."""
    found = [(stage, run.status(stage)) for stage in run.own_stages if stage != "report"]
    return [(stage, status, command(run, stage)) for stage, status in found if status != "done"]


def command(run: RunDirectory, stage: str) -> str:
    """What to type, in the folder that this is made in, to make a stage of this run."""
    path, here = run.path, Path.cwd()
    if path.is_absolute() and path.is_relative_to(here):
        path = path.relative_to(here)
    return f"groupsae {stage} {shlex.quote(str(path))}"


def facts(run: RunDirectory, data: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the run was made of, in titled lists."""
    groups = [
        ("Model", _model_facts(run, data)),
        ("Text", _text_facts(run, data)),
        ("SAEs", _sae_facts(run, data)),
        ("Made with", _environment_facts(run, data)),
    ]
    return [(title, [(name, str(value)) for name, value in rows if value not in (None, "")]) for title, rows in groups]


def _model_facts(run: RunDirectory, data: RunData) -> list[tuple[str, object]]:
    config, model = run.config.model, data.manifest.get("model") or {}
    return [
        ("name", model.get("name") or config.name),
        ("kind", model.get("kind")),
        ("revision", model.get("commit") or config.revision),
        ("blocks", model.get("blocks")),
        ("width (d_model)", model.get("d_model") or (data.train or {}).get("d_model")),
        ("parameters", count(model["parameters"]) if model.get("parameters") else None),
        ("precision", config.dtype),
        ("layers with SAEs", len(data.hookpoints) or None),
    ]


def _text_facts(run: RunDirectory, data: RunData) -> list[tuple[str, object]]:
    config, tokens = run.config.text, data.tokens or {}
    return [
        ("source", ", ".join(config.source)),
        ("training tokens", _count(tokens.get("training_tokens"))),
        ("training documents", _count(tokens.get("training_documents"))),
        ("held-out tokens", _count(tokens.get("held_out_tokens"))),
        ("held-out documents", _count(tokens.get("held_out_documents"))),
        ("context length", tokens.get("context_length") or config.context_length),
        ("compared on", _tokens(data.distances)),
        ("evaluated on", _tokens(data.reconstruction or data.losses)),
    ]


def _sae_facts(run: RunDirectory, data: RunData) -> list[tuple[str, object]]:
    train = data.train or {}
    return [
        ("architecture", run.config.sae.architecture),
        ("dictionary (d_sae)", _count(train.get("d_sae"))),
        ("active latents (k)", train.get("k") or run.config.sae.k),
        ("tokens per SAE", _count(train.get("num_tokens"))),
        ("tokens per step", _count(run.config.train.batch_tokens)),
        ("SAEs trained", len(train["groups"]) if train else None),
        ("grouping", (data.plan or {}).get("method")),
        ("seed", run.config.seed),
    ]


def _environment_facts(run: RunDirectory, data: RunData) -> list[tuple[str, object]]:
    environment = data.manifest.get("environment") or {}
    known = ("groupsae", "commit", "python", "torch", "transformers", "processor", "cores", "device", "platform")
    others = sorted((key for key in environment if key not in known), key=natural_key)
    device = data.manifest.get("device") or environment.get("device")
    return [(key, device if key == "device" else environment.get(key)) for key in (*known, *others)]


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _tokens(record: dict | None) -> str | None:
    return None if record is None else f"{record['num_tokens']:,} tokens"
