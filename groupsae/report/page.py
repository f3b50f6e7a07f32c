"""The report itself: one HTML file that opens anywhere and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from markupsafe import Markup

from groupsae.analysis.alarms import alarms
from groupsae.analysis.candidates import view_plan
from groupsae.analysis.frames import Frame, candidate_frame, equal_tokens, suite_frame
from groupsae.analysis.latent_scores import interpretability_frame
from groupsae.analysis.one_variant import of_variant
from groupsae.analysis.run_records import RunRecords, suite_title
from groupsae.analysis.summary import compare, read_against
from groupsae.config import dump_config
from groupsae.records import RunDirectory
from groupsae.records.types.summary import SuiteSummary, SummaryRecord
from groupsae.report import figures, tables, wording
from groupsae.report.evaluation_tables import circuit_frames, similarity_frames
from groupsae.report.facts import command, facts, missing_stages
from groupsae.report.figures import Drawing
from groupsae.report.forecast import PLAN_NOTE, forecast_rows, forecast_sentences, unpredicted
from groupsae.report.sweep_section import seed_frame, setting_frame, sweep_figures, sweep_headline

_HERE = Path(__file__).parent
PAGE = "report/index.html"
COST_NOTE = (
    "Costs are those of each suite trained alone. MFLOP are per token of text, by the published count and by ours; "
    "memory is what the plan predicts."
)


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    key: str
    title: str
    lead: str
    stage: str
    """The stage that makes what it shows."""
    drawings: Sequence[Drawing] = ()
    frames: Sequence[Frame] = ()
    folded: Sequence[Frame] = ()
    """Tables that are folded away under their titles."""
    rows: Sequence[tables.Row] = ()
    """Predictions, with what was measured where that is known."""
    sentences: Sequence[str] = ()
    to_do: tuple[str, Sequence[str]] | None = None
    """What could be known, and the commands that find it out."""
    link: tuple[str, str] | None = None
    """A page beside this one: its address and its title."""
    optional: bool = False
    """Left out where there is nothing to show: not every evaluation has it."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.drawings or self.frames or self.folded or self.link)


def write_report(run: RunDirectory) -> Path:
    """Write the report of a run, whole or not at all, and return its path. Needs no finished stage."""
    run.write_text(PAGE, render(run))
    return run.file(PAGE)


def render(run: RunDirectory) -> str:
    """The report of a run as HTML. The same run directory gives the same text."""
    whole = RunRecords.read(run)
    every = compare(whole)
    records = _shown(whole)
    compared = compare(records) if whole.is_sweep else every
    summaries = list(compared.suites.values())
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        name=records.name,
        model=records.model.name if records.model else run.config.model.name,
        headline=_headline(whole, every, summaries),
        alarms=alarms(whole, run.config),
        key_figures=sweep_figures(whole, every.sweep) if whole.is_sweep else wording.key_figures(summaries),
        shown=_shown_name(whole),
        suite_titles=[suite_title(suite.name) for suite in summaries],
        suite_rows=tables.side_by_side(summaries),
        suite_note=equal_tokens(summaries),
        evaluated=records.reconstruction is not None or records.losses is not None,
        sweep_sections=_with_commands(run, _sweep_sections(whole, every)),
        sections=_with_commands(run, _sections(run, whole, records, compared)),
        missing=missing_stages(run),
        facts=facts(run, whole),
        config=dump_config(run.config),
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _with_commands(run: RunDirectory, sections: Sequence[Section]) -> list[tuple[Section, str]]:
    """The sections that are shown, each with the command that makes it where it is empty."""
    return [
        (one, command(run, one.stage) if one.empty else "")
        for one in sections
        if one.stage in run.own_stages and not (one.empty and one.optional)
    ]


def _shown(records: RunRecords) -> RunRecords:
    """The records that the page shows in detail: of a sweep, those of its first variant."""
    return of_variant(records, _shown_name(records)) if records.is_sweep else records


def _shown_name(records: RunRecords) -> str:
    """The variant that the page shows in detail; empty without a sweep."""
    return next((partition.variant for partition in records.partitions.values()), "")


def _headline(records: RunRecords, compared: SummaryRecord, summaries: Sequence[SuiteSummary]) -> str:
    if records.is_sweep:
        return sweep_headline(records, compared.sweep)
    return wording.headline(summaries, len(records.hookpoints))


def _sweep_sections(records: RunRecords, compared: SummaryRecord) -> list[Section]:
    """What is said of a sweep as a whole; nothing without one."""
    if not records.is_sweep:
        return []
    sweep = compared.sweep
    layers = [figures.pareto_of_layers(records, sweep, metric) for metric in ("fvu", "delta_ce")]
    suites = suite_frame("sweep-suites", "Every suite", list(compared.suites.values()))
    seeds = seed_frame(records)
    return [
        Section(
            "sweep",
            "What the settings give",
            "All settings and seeds saw the same batches. Each SAE is as it would be if trained alone.",
            "eval",
            _drawn(figures.pareto(records, sweep), *layers),
            [frame for frame in (setting_frame(sweep),) if frame is not None],
            [frame for frame in (suites if sweep else None, seeds) if frame is not None],
        )
    ]


def _sections(run: RunDirectory, whole: RunRecords, records: RunRecords, compared: SummaryRecord) -> list[Section]:
    return [
        *_before_training(run, whole, records),
        *_after_training(run, records, compared),
        *_evaluation(records),
        _latents(run, records),
    ]


def _before_training(run: RunDirectory, whole: RunRecords, records: RunRecords) -> list[Section]:
    return [
        Section(
            "layers",
            "Which layers are alike",
            "Layers whose activations point the same way can share one dictionary.",
            "distances",
            _drawn(figures.distance_map(records)),
        ),
        Section(
            "groups",
            "Which layers share an SAE",
            "Fewer groups cost less and ask more of each SAE.",
            "group",
            _drawn(figures.amad_curve(records), figures.candidate_strip(records)),
        ),
        _plan_section(run, whole, records),
    ]


def _after_training(run: RunDirectory, records: RunRecords, compared: SummaryRecord) -> list[Section]:
    return [
        Section(
            "cost",
            "What it cost",
            "",
            "train",
            _drawn(figures.cost_and_quality(records), figures.stage_seconds(records)),
            _cost_frames(run, records, compared),
        ),
        Section("training", "How training went", "", "train", _drawn(figures.training_curves(records))),
    ]


def _evaluation(records: RunRecords) -> list[Section]:
    return [
        Section(
            "quality",
            "How good the SAEs are",
            "Measured on text that was never trained on, in the model’s own units, one layer replaced at a time.",
            "eval",
            _drawn(figures.layer_quality(records), figures.layer_sparsity(records)),
            [frame for frame in (tables.layer_frame(records),) if frame is not None],
            tables.quality_frames(records),
        ),
        Section(
            "circuits",
            "Which latents a task needs",
            "How well the model still does simple tasks when only a few latents of every layer are kept.",
            "eval",
            _drawn(figures.faithfulness_curves(records)),
            folded=circuit_frames(records),
            optional=True,
        ),
        Section(
            "similarity",
            "What dictionaries share",
            "How many directions SAEs share, how often they fire on the same tokens, and how a group’s latents spread "
            "over its layers.",
            "eval",
            _drawn(figures.shared_directions(records)),
            folded=similarity_frames(records),
            optional=True,
        ),
    ]


def _latents(run: RunDirectory, records: RunRecords) -> Section:
    frame, written = interpretability_frame(records), run.status("browse") == "done"
    return Section(
        "latents",
        "What latents mean",
        "Every latent has a page with the text it fires on, and scores that need no judge.",
        "browse",
        _drawn(figures.latent_scores(records)),
        [frame] if frame else [],
        link=("../browser/index.html", "Look at every latent") if written else None,
        optional=True,
    )


def _plan_section(run: RunDirectory, whole: RunRecords, records: RunRecords) -> Section:
    plan = view_plan(records)
    frame = replace(candidate_frame(plan), notes=[PLAN_NOTE]) if plan.has_costs else None
    return Section(
        "plan",
        "What every number of groups would cost",
        "Known before training: what every number of groups takes, and how good it is likely to be.",
        "plan",
        _drawn(figures.frontier(records)),
        [frame] if frame else [],
        rows=forecast_rows(records, whole),
        sentences=forecast_sentences(whole),
        to_do=unpredicted(run, records),
    )


def _cost_frames(run: RunDirectory, records: RunRecords, compared: SummaryRecord) -> list[Frame]:
    """Quality beside cost of this run's suites once trained, and of every comparison with another run."""
    frames = []
    if records.train is not None and compared.suites:
        summaries = list(compared.suites.values())
        frames.append(suite_frame("suite-table", "Quality beside cost", summaries))
    for place, found in enumerate(read_against(run)):
        title = f"Beside the suites of {found.against}"
        frames.append(suite_frame(f"against-table-{place}", title, list(found.suites.values())))
    if frames:
        frames[-1] = replace(frames[-1], notes=[*frames[-1].notes, COST_NOTE])
    return frames


def _drawn(*drawings: Drawing | None) -> list[Drawing]:
    return [drawing for drawing in drawings if drawing is not None]
