"""The import verb: other tools' SAEs as a run of their own, which can be evaluated, exported and started from."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from groupsae.config import RunConfig
from groupsae.errors import ConfigError, RunError
from groupsae.interop.importing import Found, ImportedSAE, raw_scales
from groupsae.interop.model_facts import hub_name
from groupsae.partition import group_name
from groupsae.progress import bar, say
from groupsae.recipes.export import mark_stale_exports
from groupsae.recipes.run import alone
from groupsae.records import RunDirectory
from groupsae.records.environment import version_of
from groupsae.records.types.imported import ImportedFile, ImportRecord
from groupsae.saes.suite import save_sae, write_suite_index


def import_run(found: Found, place: Path, base: RunConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Write the SAEs that were found into a run directory; what was imported, as JSON.

    `base` is the config of everything but the SAEs: the model where it names one, the text to evaluate on. Raises
    RunError for a place that holds something else, or without `overwrite` results of another config; ConfigError for
    SAEs that cannot be imported, before anything is written.
    """
    began = time.perf_counter()
    config = _config(found, next(iter(found)), base, place)
    run = RunDirectory.at(place, config, overwrite=overwrite)
    if run.status("train") != "missing" and not overwrite:
        raise RunError(f"{place} holds SAEs already. Replace them with --overwrite, or give another place with --out.")
    place.mkdir(parents=True, exist_ok=True)
    with alone(run):
        run.adopt()
        record, scales, width = _write_saes(found, run)
        run.write("scales.safetensors", raw_scales(scales, width).save)
        write_suite_index(run.path, {_suite_name(found): found.partition})
        _remove_others(run, record)
        files = [record.write(run), "suite.json", "scales.safetensors"]
        files += [f"groups/{name}/{file}" for name in record.saes for file in ("cfg.json", "sae.safetensors")]
        inputs = [Path(file) for one in record.saes.values() for file in one.files]
        run.finish("train", time.perf_counter() - began, files, inputs)
        mark_stale_exports(run)
    return {"run": str(run.path), "suite": _suite_name(found)} | record.model_dump(mode="json")


def _config(found: Found, first: ImportedSAE, base: RunConfig, place: Path) -> RunConfig:
    """The run's config: the base, with the model, the places and the kind of SAE that were found."""
    model, named = base.model, first.found.model
    if model == RunConfig().model:
        name = found.model.name if found.model else hub_name(named) if named else None
        if name is None:
            raise ConfigError(f"{found.source} does not name the language model that it was trained on; give --model.")
        model = model.model_copy(update={"name": name})
    text = base.text
    if text == RunConfig().text and type(first.found.context_length) is int and first.found.context_length > 1:
        text = text.model_copy(update={"context_length": first.found.context_length})
    return RunConfig(
        **dict(base)
        | {
            "name": base.name if base.name != RunConfig().name else place.name,
            "model": model,
            "text": text,
            "activations": base.activations.model_copy(update={"hookpoints": found.partition.hookpoints}),
            "sae": first.sae.config,
            "train": base.train.model_copy(update={"imported": f"{found.format} {found.source}"}),
        }
    )


def _write_saes(found: Found, run: RunDirectory) -> tuple[ImportRecord, dict[str, float], int]:
    """Write one SAE after the other; the record, the scale of each hookpoint, and the width of the activations."""
    saes, scales, width = {}, {}, 0
    with bar("import", len(found.partition), "SAEs") as advance:
        for imported in found:
            name = group_name(imported.hookpoints)
            save_sae(imported.sae, run.file(f"groups/{name}"))
            saes[name] = _record(imported)
            scales |= dict(zip(imported.hookpoints, imported.scales, strict=True))
            width = imported.sae.d_model
            advance(1)
    for note in dict.fromkeys(note for one in saes.values() for note in one.notes):
        say(f"import: {note}")
    if found.model is None:
        say(
            f"import: the config of model {run.config.model.name!r} is out of reach, so that the places "
            f"{found.partition.hookpoints[0]}, ... were not checked"
        )
    record = ImportRecord(
        source=found.source,
        format=found.format,
        model=run.config.model.name,
        groupsae=version_of("groupsae"),
        saes=saes,
    )
    return record, scales, width


def _record(imported: ImportedSAE) -> ImportedFile:
    return ImportedFile(
        hookpoints=imported.hookpoints,
        places=imported.found.places,
        files=tuple(str(file.absolute()) for file in imported.files),
        architecture=imported.sae.config.architecture,
        d_sae=imported.sae.d_sae,
        k=imported.found.k,
        scales=imported.scales,
        notes=imported.found.notes,
        config=imported.found.facts,
    )


def _suite_name(found: Found) -> str:
    return "baseline" if all(len(group) == 1 for group in found.partition.groups) else "groups"


def _remove_others(run: RunDirectory, record: ImportRecord) -> None:
    """Removes the folders of SAEs of before."""
    for folder in run.file("groups").iterdir():
        if folder.name not in record.saes and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
