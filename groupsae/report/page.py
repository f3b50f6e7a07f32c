"""The report itself: one HTML file that opens anywhere and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from groupsae.config import dump_config
from groupsae.records import RunDirectory
from groupsae.report import figures, prices, tables, verdicts, wording
from groupsae.report.circuits import circuit_folds
from groupsae.report.data import RunData, read_run
from groupsae.report.figures import Drawing
from groupsae.report.similarity import similarity_folds
from groupsae.report.summary import summarize_data
from groupsae.report.tables import Fold

_HERE = Path(__file__).parent
PAGE = "report/index.html"


@dataclass(frozen=True)
class Section:
    """A part of the page: its figures, or the command that makes what it shows."""

    key: str
    title: str
    lead: str
    drawings: tuple[Drawing, ...]
    command: str
    folds: tuple[Fold, ...] = ()


def write_report(run: RunDirectory) -> Path:
    """Writes the report of a run, whole or not at all, and returns its path. Needs no finished stage."""
    run.write_text(PAGE, render(run))
    return run.file(PAGE)


def render(run: RunDirectory) -> str:
    """The report of a run as HTML. The same run directory gives the same text."""
    data = read_run(run)
    summaries = summarize_data(data)
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        name=data.name,
        model=(data.manifest.get("model") or {}).get("name") or run.config.model.name,
        headline=wording.headline(summaries, len(data.hookpoints)),
        key_figures=wording.key_figures(summaries, data.train["num_tokens"] if data.train else None),
        sections=_sections(run, data),
        summaries=summaries,
        summary_titles=[tables.SUITE_TITLES.get(suite.name, suite.name) for suite in summaries],
        measures=tables.summary_table(summaries),
        evaluated=data.reconstruction is not None or data.losses is not None,
        layers=tables.layer_table(data),
        prices=prices.price_table(data),
        price_note=prices.note(data),
        standings=[one for one in (verdicts.standing(data), *verdicts.against(run)) if one is not None],
        standing_note=verdicts.STANDING_NOTE,
        forecast=prices.forecast_table(data),
        forecast_sentences=prices.forecast_sentences(data),
        unpredicted=prices.unpredicted(run, data),
        missing=tables.missing_stages(run),
        facts=tables.facts(run, data),
        config=dump_config(run.config),
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


_SECTIONS: tuple[tuple[str, str, str, str, tuple[Callable[[RunData], Drawing | None], ...]], ...] = (
    (
        "layers",
        "Which layers are alike",
        "Layers whose activations point the same way can be served by one dictionary.",
        "distances",
        (figures.distance_map,),
    ),
    (
        "groups",
        "Which layers share an SAE",
        "Fewer groups cost less and ask more of each SAE.",
        "group",
        (figures.amad_curve, figures.division_strip),
    ),
    (
        "plan",
        "What each division would cost",
        "Known before training: what every number of groups takes, and how good it is likely to be.",
        "plan",
        (figures.frontier,),
    ),
    (
        "cost",
        "What it cost",
        "",
        "train",
        (figures.cost_and_quality, figures.stage_seconds),
    ),
    (
        "quality",
        "How good the SAEs are",
        "Measured on text that was never trained on, in the model’s own units, one layer replaced at a time.",
        "eval",
        (figures.layer_quality, figures.layer_sparsity),
    ),
    (
        "circuits",
        "Which latents a task needs",
        "What is left of the model’s skill at simple tasks where only a few latents of every layer are kept.",
        "eval",
        (lambda data: figures.faithfulness_curves(data.circuits),),
    ),
    (
        "similarity",
        "What dictionaries share",
        "How far SAEs hold the same directions and fire on the same tokens, and how a group’s latents spread.",
        "eval",
        (lambda data: figures.shared_directions(data.similarity),),
    ),
    (
        "training",
        "How training went",
        "",
        "train",
        (figures.training_curves,),
    ),
)

_OPTIONAL = ("circuits", "similarity")
"""Sections that are left out where there is nothing to show: not every evaluation has these parts."""
_FOLDS: dict[str, Callable[[RunData], tuple[Fold, ...]]] = {
    "quality": verdicts.folds,
    "circuits": lambda data: circuit_folds(data.circuits),
    "similarity": lambda data: similarity_folds(data.similarity),
}


def _sections(run: RunDirectory, data: RunData) -> list[Section]:
    sections = []
    for key, title, lead, stage, draw in _SECTIONS:
        if stage not in run.own_stages:
            continue
        drawings = tuple(drawing for drawing in (one(data) for one in draw) if drawing is not None)
        folds = _FOLDS[key](data) if key in _FOLDS else ()
        if key in _OPTIONAL and not drawings and not folds:
            continue
        there = prices.is_priced(data) if stage == "plan" else bool(drawings or folds)
        sections.append(Section(key, title, lead, drawings, "" if there else tables.command(run, stage), folds))
    return sections
