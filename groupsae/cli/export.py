"""The verb that writes SAEs in the files of other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from groupsae.cli.printing import print_json
from groupsae.cli.target import directory_of, split_name
from groupsae.records import RunDirectory

READERS = {
    "saelens": 'SAE.load_from_disk("{folder}/{hookpoint}")',
    "dictionary_learning": 'load_dictionary("{folder}/{hookpoint}", "cpu")',
    "sparsify": 'SparseCoder.load_many("{folder}", local=True)',
}


@dataclass(frozen=True)
class Options:
    """groupsae export: write one suite's SAEs in the files of another tool, a folder per hookpoint.

    Args:
        to: The tool.
        suite: Which suite; the groups, if nothing is named.
        out: The folder to write, instead of RUN/exports/TOOL/SUITE.
        overwrite: Replace an earlier export.
        json: Print what was written as JSON.
    """

    to: Literal["saelens", "sparsify", "dictionary_learning"]
    suite: str | None = None
    out: Path | None = None
    overwrite: bool = False
    json: bool = False


def export(rest: list[str]) -> None:
    """`groupsae export RUN --to saelens|sparsify|dictionary_learning`."""
    import tyro

    name, flags = split_name("export", rest)
    options = tyro.cli(Options, prog="groupsae export RUN", args=flags, config=(tyro.conf.FlagCreatePairsOff,))
    run = RunDirectory.open(directory_of(name))
    from groupsae.recipes import export as recipe

    with run.blamed():
        written = recipe.export(run, options.to, options.suite, options.out, overwrite=options.overwrite)
    if options.json:
        print_json(written)
    else:
        _print(written)


def _print(written: dict[str, Any]) -> None:
    hookpoints = written["hookpoints"]
    print(f"{written['folder']}: {len(hookpoints)} SAEs of suite {written['suite']} for {written['layout']}")
    print("read by " + READERS[written["layout"]].format(folder=written["folder"], hookpoint=next(iter(hookpoints))))
