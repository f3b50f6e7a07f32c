"""The export verb: one suite of a run in the files of another tool."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from groupsae.interop.layout import Facts, write_suite
from groupsae.interop.saelens import SAELENS
from groupsae.interop.sparsify import SPARSIFY
from groupsae.lock import hold
from groupsae.records import RunDirectory
from groupsae.saes.suite import Suite, suite_named

LAYOUTS = {layout.name: layout for layout in (SAELENS, SPARSIFY)}


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
    facts = Facts(run.config.model.name, run.config.text.context_length)
    with hold(run.path) if out is None else nullcontext():  # elsewhere, the run is only read
        index = write_suite(Suite.load(run.path, name), folder, LAYOUTS[to], facts, overwrite=overwrite)
    return {"folder": str(folder), "suite": name} | index
