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
from groupsae.analysis.run_records import RunRecords, suite_title
from groupsae.analysis.summary import compare, read_against
from groupsae.config import dump_config
from groupsae.records import RunDirectory
from groupsae.records.types.summary import SummaryRecord
from groupsae.report import figures, tables, wording
from groupsae.report.evaluation_tables import circuit_frames, similarity_frames
from groupsae.report.facts import command, facts, missing_stages
from groupsae.report.figures import Drawing
from groupsae.report.forecast import PLAN_NOTE, forecast_rows, forecast_sentences, unpredicted

_HERE = Path(__file__).parent
PAGE = "report/index.html"
COST_NOTE = (
    "Costs are those of each suite trained alone. MFLOP are per token of text, by the published count and by ours; "
    "memory is what the plan predicts. Equal FLOPs and equal FVU are by our count, from the FVU on training text, up "
    "to where the learning rate begins to fall; between logged points ln FVU is taken as linear in ln FLOP."
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
    records = RunRecords.read(run)
    compared = compare(records)
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
        headline=wording.headline(summaries, len(records.hookpoints)),
        alarms=alarms(records, run.config),
        key_figures=wording.key_figures(summaries),
        suite_titles=[suite_title(suite.name) for suite in summaries],
        suite_rows=tables.side_by_side(summaries, compared.matched_cost),
        suite_note=equal_tokens(summaries),
        evaluated=records.reconstruction is not None or records.losses is not None,
        sections=[
            (one, command(run, one.stage) if one.empty else "")
            for one in _sections(run, records, compared)
            if one.stage in run.own_stages and not (one.empty and one.optional)
        ],
        missing=missing_stages(run),
        facts=facts(run, records),
        config=dump_config(run.config),
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _sections(run: RunDirectory, records: RunRecords, compared: SummaryRecord) -> list[Section]:
    return [
        *_before_training(run, records),
        *_after_training(run, records, compared),
        *_evaluation(records),
        _latents(run, records),
    ]


def _before_training(run: RunDirectory, records: RunRecords) -> list[Section]:
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
        _plan_section(run, records),
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


def _plan_section(run: RunDirectory, records: RunRecords) -> Section:
    plan = view_plan(records)
    frame = replace(candidate_frame(plan), notes=[PLAN_NOTE]) if plan.has_costs else None
    return Section(
        "plan",
        "What every number of groups would cost",
        "Known before training: what every number of groups takes, and how good it is likely to be.",
        "plan",
        _drawn(figures.frontier(records)),
        [frame] if frame else [],
        rows=forecast_rows(records),
        sentences=forecast_sentences(records),
        to_do=unpredicted(run, records),
    )


def _cost_frames(run: RunDirectory, records: RunRecords, compared: SummaryRecord) -> list[Frame]:
    """Quality beside cost of this run's suites once trained, and of every comparison with another run."""
    frames = []
    if records.train is not None and compared.suites:
        summaries = list(compared.suites.values())
        frames.append(suite_frame("suite-table", "Quality beside cost", summaries, compared.matched_cost))
    for place, found in enumerate(read_against(run)):
        title = f"Beside the suites of {found.against}"
        frames.append(suite_frame(f"against-table-{place}", title, list(found.suites.values()), found.matched_cost))
    if frames:
        frames[-1] = replace(frames[-1], notes=[*frames[-1].notes, COST_NOTE])
    return frames


def _drawn(*drawings: Drawing | None) -> list[Drawing]:
    return [drawing for drawing in drawings if drawing is not None]
