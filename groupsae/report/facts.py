"""What a run was made of, and what is missing of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from groupsae.analysis.candidates import view_plan
from groupsae.analysis.run_records import RunRecords
from groupsae.hookpoints import natural_key
from groupsae.metrics import count
from groupsae.records import RunDirectory
from groupsae.records.types.manifest import ModelRecord

Facts = list[tuple[str, Any]]
_MADE_WITH = ("groupsae", "commit", "python", "torch", "transformers", "processor", "cores", "device", "platform")


def missing_stages(run: RunDirectory) -> list[tuple[str, str, str]]:
    """Stages that are missing or out of date: stage, `missing` or `stale`, and the command that makes it."""
    found = [(stage, run.status(stage)) for stage in run.own_stages if stage != "report"]
    return [(stage, status, command(run, stage)) for stage, status in found if status != "done"]


def command(run: RunDirectory, stage: str) -> str:
    """The command that makes a stage of this run, typed in the current folder."""
    path, here = run.path, Path.cwd()
    if path.is_absolute() and path.is_relative_to(here):
        path = path.relative_to(here)
    return f"groupsae {stage} {shlex.quote(str(path))}"


def facts(run: RunDirectory, records: RunRecords) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the run was made of, in titled lists."""
    groups = [
        ("Model", _model_facts(run, records)),
        ("Text", _text_facts(run, records)),
        ("SAEs", _sae_facts(run, records)),
        ("Made with", _environment_facts(records)),
    ]
    return [(title, [(name, str(value)) for name, value in rows if value not in (None, "")]) for title, rows in groups]


def _model_facts(run: RunDirectory, records: RunRecords) -> Facts:
    config, model = run.config.model, records.model or ModelRecord(name=run.config.model.name)
    return [
        ("name", model.name),
        ("kind", model.kind),
        ("revision", model.commit or config.revision),
        ("blocks", model.blocks),
        ("width (d_model)", model.d_model or (records.train and records.train.d_model)),
        ("parameters", count(model.parameters) if model.parameters else None),
        ("precision", model.dtype or config.dtype),
        ("layers with SAEs", len(records.hookpoints) or None),
    ]


def _text_facts(run: RunDirectory, records: RunRecords) -> Facts:
    config, tokens = run.config.text, records.tokens
    evaluated = records.reconstruction or records.losses
    return [
        ("source", ", ".join(config.source)),
        ("positions left out", records.positions and records.positions.sentence),
        ("training tokens", tokens and f"{tokens.training_tokens:,}"),
        ("training documents", tokens and f"{tokens.training_documents:,}"),
        ("held-out tokens", tokens and f"{tokens.held_out_tokens:,}"),
        ("held-out documents", tokens and f"{tokens.held_out_documents:,}"),
        ("context length", tokens.context_length if tokens else config.context_length),
        ("compared on", records.distances and f"{records.distances.num_tokens:,} tokens"),
        ("evaluated on", evaluated and f"{evaluated.num_tokens:,} tokens"),
    ]


def _sae_facts(run: RunDirectory, records: RunRecords) -> Facts:
    config, train = run.config, records.train
    trained = list(train.variants.values()) if train and train.variants else [train] if train else []
    return [
        ("settings", _listed(variant.setting for variant in config.variants)),
        ("architecture", _listed(sae.architecture for sae in config.saes)),
        ("dictionary (d_sae)", _listed(f"{one.d_sae:,}" for one in trained)),
        ("active latents (k)", _listed(one.k for one in trained or config.saes)),
        ("tokens per SAE", train and f"{train.num_tokens:,}"),
        ("tokens per step", f"{config.train.batch_tokens:,}"),
        ("SAEs trained", train and len(train.saes)),
        ("grouping", view_plan(records).method if records.planned else None),
        ("seed", config.seed),
        ("seeds of weights", _listed(config.seeds)),
    ]


def _listed(values: Iterable[Any]) -> str:
    """Each value once: `16, 32`."""
    return ", ".join(dict.fromkeys(map(str, values)))


def _environment_facts(records: RunRecords) -> Facts:
    known = dict.fromkeys(_MADE_WITH) | records.environment
    others = sorted((key for key in known if key not in _MADE_WITH), key=natural_key)
    return [(key, known[key]) for key in (*_MADE_WITH, *others)]
