"""The verbs that exchange suites with the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupsae.cli.printing import print_json
from groupsae.cli.target import directory_of, split_name
from groupsae.errors import ConfigError
from groupsae.records import RunDirectory
from groupsae.units import format_bytes


@dataclass(frozen=True)
class PushOptions:
    """groupsae push RUN USER/NAME: upload a suite to the Hugging Face hub, with a card made from the run.

    The release is written to RUN/exports/hub/SUITE first. The token is the one of `hf auth login`, or HF_TOKEN.

    Args:
        suite: Which suite; the groups, if nothing is named.
        license: The license of the SAEs, as the hub spells it: apache-2.0, mit, cc-by-4.0.
        private: Make the repository private, if it is new.
        dry_run: Write the release, send nothing.
        overwrite: Replace the release that the repository holds.
        json: Print what was written as JSON.
    """

    suite: str | None = None
    license: str | None = None
    private: bool = False
    dry_run: bool = False
    overwrite: bool = False
    json: bool = False


@dataclass(frozen=True)
class PullOptions:
    """groupsae pull USER/NAME: download a suite from the Hugging Face hub. The same command resumes a download.

    Args:
        layer: Download only the SAEs that serve these layers.
        out: The folder to write, instead of releases/NAME.
        revision: A branch, tag or commit.
        everything: Download the files of other tools too.
        json: Print what was written as JSON.
    """

    layer: tuple[str, ...] = ()
    out: Path | None = None
    revision: str | None = None
    everything: bool = False
    json: bool = False


def push(rest: list[str]) -> None:
    """`groupsae push RUN USER/NAME`."""
    name, flags = split_name("push", rest)
    repo, flags = _repository("push RUN", flags)
    options = _read(PushOptions, "push RUN USER/NAME", flags)
    run = RunDirectory.open(directory_of(name))
    from groupsae.recipes import push as recipe

    with run.blamed():
        written = recipe.push(
            run,
            repo,
            options.suite,
            private=options.private,
            dry_run=options.dry_run,
            overwrite=options.overwrite,
            license=options.license,
        )
    if options.json:
        print_json(written)
        return
    _print_files(written)
    print(f"uploaded to {repo}: {written['commit']}" if written["commit"] else f"nothing was sent to {repo} (dry run)")


def pull(rest: list[str]) -> None:
    """`groupsae pull USER/NAME`."""
    repo, flags = _repository("pull", rest)
    options = _read(PullOptions, "pull USER/NAME", flags)
    from groupsae.recipes import pull as recipe

    written = recipe.pull(
        repo, options.out, layers=options.layer, revision=options.revision, everything=options.everything
    )
    if options.json:
        print_json(written)
        return
    _print_files(written)
    print(f'read by gs.Suite.load("{written["folder"]}")')


def _read(kind: type, verb: str, flags: list[str]) -> Any:
    import tyro

    return tyro.cli(kind, prog=f"groupsae {verb}", args=flags, config=(tyro.conf.FlagCreatePairsOff,))


def _repository(verb: str, rest: list[str]) -> tuple[str, list[str]]:
    """The repository and the flags. Raises ConfigError where it is missing and no help is asked for."""
    if rest and not rest[0].startswith("-"):
        return rest[0], rest[1:]
    if "-h" in rest or "--help" in rest:
        return "", rest
    raise ConfigError(f"`groupsae {verb}` needs a repository: USER/NAME.")


def _print_files(written: dict[str, Any]) -> None:
    files = written["files"]
    print(f"{written['folder']}: {len(files)} files, {format_bytes(sum(files.values()))}")
