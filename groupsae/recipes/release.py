"""What a release says of itself, gathered from the records of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from groupsae.hub.place import is_repository
from groupsae.partition import group_name
from groupsae.progress import say
from groupsae.records import RunDirectory, version_of
from groupsae.records.types.losses import LossesRecord
from groupsae.records.types.reconstruction import ReconstructionRecord
from groupsae.records.types.record import Record
from groupsae.records.types.release import ReleasedLayer, ReleasedModel, ReleasedSAE, ReleasedText, ReleaseRecord
from groupsae.records.types.tokens import TokensRecord
from groupsae.saes.suite import Suite

Kind = TypeVar("Kind", bound=Record)


def describe_release(run: RunDirectory, name: str, suite: Suite, license: str | None) -> ReleaseRecord:
    """The release of a run's suite. Paths of this machine are left out; results that are stale are not published."""
    reconstruction, losses = _current(run, ReconstructionRecord), _current(run, LossesRecord)
    together = losses.all_layers.get(name) if losses else None
    return ReleaseRecord(
        groupsae=version_of("groupsae"),
        suite=name,
        model=_model(run),
        text=_text(run),
        license=license,
        per_layer=next((maps.per_layer.names for maps in suite.layer_maps.values()), ()),
        saes={group_name(group): _sae(suite, group) for group in suite.partition.groups},
        layers={layer: _layer(suite, name, layer, reconstruction, losses) for layer in suite.partition.hookpoints},
        evaluated_tokens=(reconstruction or losses).num_tokens if reconstruction or losses else None,
        all_layers_delta_ce=together.delta_ce if together else None,
    )


def _current(run: RunDirectory, kind: type[Kind]) -> Kind | None:
    """A part of the evaluation, if it was made from what the run holds now."""
    status = run.status("eval", kind.path)
    if status != "done":
        say(f"{kind.path} is {status}: the card is written without it. `groupsae eval {run.path}` makes it.")
        return None
    return kind.read(run)


def _model(run: RunDirectory) -> ReleasedModel:
    found, config = run.manifest.model, run.config.model
    return ReleasedModel(
        name=_public(config.name),
        revision=(found.commit if found else None) or config.revision,
        kind=found.kind if found else None,
        d_model=found.d_model if found else None,
        blocks=found.blocks if found else None,
    )


def _text(run: RunDirectory) -> ReleasedText:
    tokens = TokensRecord.find(run)
    return ReleasedText(
        sources=tuple(map(_public, run.config.text.source)),
        context_length=run.config.text.context_length,
        training_tokens=tokens.training_tokens if tokens else None,
        training_documents=tokens.training_documents if tokens else None,
    )


def _public(name: str) -> str:
    """A name as others may read it: of a path on this machine, its last part."""
    is_here = Path(name).expanduser().exists() or Path(name).is_absolute() or name.startswith((".", "~"))
    return Path(name).name if is_here or not (is_repository(name) or "/" not in name or ":" in name) else name


def _sae(suite: Suite, group: tuple[str, ...]) -> ReleasedSAE:
    sae = suite.saes[group_name(group)]
    return ReleasedSAE(
        layers=group,
        architecture=sae.config.architecture,
        d_sae=sae.d_sae,
        k=getattr(sae.config, "k", None),
        tokens=sae.lineage.tokens if sae.lineage else None,
        lineage=sae.lineage,
    )


def _layer(
    suite: Suite,
    name: str,
    layer: str,
    reconstruction: ReconstructionRecord | None,
    losses: LossesRecord | None,
) -> ReleasedLayer:
    group = group_name(suite.partition.group_of(layer))
    parts = [record.suites.get(name, {}).get(layer) for record in (reconstruction, losses) if record is not None]
    values: dict[str, float | None] = {}
    intervals = {}
    for part in filter(None, parts):
        known = part.model_dump()
        values |= {key: known[key] for key in ("fvu", "delta_ce", "l0", "dead_share") if key in known}
        intervals |= {key: part.intervals[key] for key in ("fvu", "delta_ce") if key in part.intervals}
    return ReleasedLayer(group=group, intervals=intervals, **values)
