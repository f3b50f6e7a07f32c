"""The export verb: one suite of a run in the files of another tool."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from groupsae.interop.dictionary_learning import DICTIONARY_LEARNING
from groupsae.interop.layout import INDEX, Facts, write_suite
from groupsae.interop.model_facts import ModelFacts
from groupsae.interop.saelens import SAELENS
from groupsae.interop.sparsify import SPARSIFY
from groupsae.lock import hold
from groupsae.recipes.context import ROWS_FILE
from groupsae.records import RunDirectory
from groupsae.saes.suite import Suite, suite_named
from groupsae.storage import write_json
from groupsae.text.tokens import TokenRows

LAYOUTS = {layout.name: layout for layout in (SAELENS, SPARSIFY, DICTIONARY_LEARNING)}


def export(
    run: RunDirectory, to: str, name: str | None, out: Path | None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write a suite of a run into `out`, or the run's `exports/<tool>/<suite>`; what was written where, as JSON.

    Without a name it is the suite of groups. Raises RunError if the run has no such suite, or the place is taken;
    ConfigError for SAEs that the tool cannot hold.
    """
    run.require("train")
    name, _ = suite_named(run.path, name)
    folder = out or run.file(f"exports/{to}/{name}")
    with hold(run.path) if out is None else nullcontext():  # elsewhere, the run is only read
        suite, layout, trained = Suite.load(run.path, name), LAYOUTS[to], run.manifest.stages["train"].files_digest
        index = write_suite(suite, folder, layout, facts_of(run), overwrite=overwrite, trained=trained)
    return {"folder": str(folder), "suite": name} | index


def facts_of(run: RunDirectory) -> Facts:
    """What a run knows of its model and its rows."""
    config = run.config
    options = {"revision": config.model.revision, "gguf_file": config.model.gguf_file}
    return Facts(
        config.model.name,
        config.text.context_length,
        prepend_bos=_begins_with_special(run),
        exclude_special_tokens=config.activations.skip_special,
        skip_first=config.activations.skip_first if config.activations.skip_special else 0,
        about=ModelFacts.find(config.model.name, **options),
    )


def _begins_with_special(run: RunDirectory) -> bool:
    """Whether every row begins with one and the same special token: rows of a tokenizer that begins texts with it."""
    if run.status("tokens") == "missing":
        return False
    rows = TokenRows.load(run.file(ROWS_FILE))
    firsts = set(rows.ids_RT[:, 0].tolist())
    return len(firsts) == 1 and firsts <= set(rows.special_ids)


def mark_stale_exports(run: RunDirectory) -> list[str]:
    """Write into each export below the run that was made of an earlier training that it is stale; their folders.

    Called once a run was trained again. What stands there stays as it is.
    """
    done = run.manifest.stages.get("train")
    stale = []
    for path in sorted(run.file("exports").glob(f"*/*/{INDEX}")):
        index = run.read_json(path.relative_to(run.path).as_posix())
        if done is not None and index.get("trained") not in (None, done.files_digest):
            index["stale"] = f"made of an earlier training of {run.path.name}; export again with --overwrite"
            write_json(path, index)
            stale.append(path.parent.relative_to(run.path).as_posix())
    return stale
