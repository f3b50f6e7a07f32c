"""The push verb: one suite of a run as a release on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from groupsae.errors import ConfigError
from groupsae.hub.card import card
from groupsae.hub.place import is_repository
from groupsae.hub.upload import files_of, upload
from groupsae.interop.layout import Facts, write_suite
from groupsae.interop.saelens import SAELENS
from groupsae.lock import hold
from groupsae.progress import say
from groupsae.recipes.export import facts_of
from groupsae.recipes.release import describe_release
from groupsae.records import RunDirectory
from groupsae.records.types.lineage import Lineage
from groupsae.records.types.manifest import FileFacts
from groupsae.saes.suite import Suite, suite_named
from groupsae.storage import describe, write_json, write_text

LOCAL = "release:"
"""Before the name of a model, so that no folder of this machine is meant."""


def push(
    run: RunDirectory,
    repo: str,
    name: str | None = None,
    *,
    private: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    license: str | None = None,
) -> dict[str, Any]:
    """Make a release of a suite in the run's `exports/hub/SUITE`, and upload it; what was written where, as JSON.

    With `dry_run` nothing is sent. Raises ConfigError for a name that is no `user/name`; RunError if the run has no
    such suite; HubError if the repository holds something already, or the hub refuses.
    """
    if not is_repository(repo):
        raise ConfigError(f"{repo!r} is no id of a repository. Give USER/NAME.")
    run.require("train")
    name, _ = suite_named(run.path, name)
    folder = run.file(f"exports/hub/{name}")
    with hold(run.path):
        _write_release(run, name, repo, folder, license)
        files = {name: path.stat().st_size for name, path in files_of(folder).items()}
        written = {"folder": str(folder), "repo": repo, "suite": name, "files": files, "commit": None}
        if dry_run:
            return written
        say(f"uploading {len(files)} files to {repo}")
        commit = upload(
            folder, repo, private=private, overwrite=overwrite, message=f"Suite {name} of {run.config.name}"
        )
    return written | {"commit": commit}


def _write_release(run: RunDirectory, name: str, repo: str, folder: Path, license: str | None) -> None:
    """Write the suite for SAELens, in our own form beside it, what the release is, and its card."""
    suite = _fit_for_others(Suite.load(run.path, name))
    release = describe_release(run, name, suite, license)
    facts, trained = _public_facts(run, release.model.name), run.manifest.stages["train"].files_digest
    write_suite(suite, folder, SAELENS, facts, overwrite=True, trained=trained)
    suite.save(folder, name)
    write_text(folder / "README.md", card(release, repo))
    files = {name: FileFacts(**describe(path)) for name, path in files_of(folder).items()}
    write_json(folder / release.path, release.model_copy(update={"files": files}).model_dump(mode="json"))


def _public_facts(run: RunDirectory, model: str) -> Facts:
    """What the run knows of its model, which other tools are not told to look for in a folder of this machine."""
    facts = facts_of(run)
    about = None if facts.about is None else replace(facts.about, name=f"{LOCAL}{model}")
    return replace(facts, model=model, about=about)


def _fit_for_others(suite: Suite) -> Suite:
    """The suite, whose SAEs name the runs that they come from without this machine's folders."""
    for sae in suite.saes.values():
        sae.lineage = _without_folders(sae.lineage)
    return suite


def _without_folders(lineage: Lineage | None) -> Lineage | None:
    if lineage is None or lineage.origin is None:
        return lineage
    origin = lineage.origin
    run = Path(origin.run).name if origin.run else None
    known = origin.model_copy(update={"run": run, "lineage": _without_folders(origin.lineage)})
    return lineage.model_copy(update={"origin": known})
