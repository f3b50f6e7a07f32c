"""Downloads a release, or the part of it that some layers need, into a folder of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from groupsae.errors import HubError, RunError, StorageError
from groupsae.hub.faults import hub_errors
from groupsae.hub.place import INDEX, OTHER_TOOLS
from groupsae.partition import Partition, group_name
from groupsae.progress import bar
from groupsae.records.types.release import ReleaseRecord
from groupsae.storage import describe, storage_errors, within
from groupsae.units import format_bytes

FIRST = (INDEX, ReleaseRecord.path, "scales.safetensors", "README.md")
SLACK = 1.05
"""Free space asked for, as a multiple of what is downloaded."""


def download(
    repo: str, folder: Path, *, revision: str | None = None, layers: Sequence[str] = (), everything: bool = False
) -> dict[str, int]:
    """Download a release into a folder that does not exist yet; the bytes of each of its files.

    Without `everything`, the files of other tools are left out. With `layers`, only the SAEs that serve them are
    downloaded. A broken connection is taken up again; a download that was given up goes on with the file that it was
    at, in `.NAME.pulling` beside the folder.

    Raises RunError if the folder exists, or a file differs from what the release says; HubError for a repository that
    is missing, closed, out of reach or no release; StorageError if there is no space.
    """
    if folder.exists():
        raise RunError(f"{folder} exists. Give another place with --out, or remove it.")
    from huggingface_hub import HfApi

    with hub_errors(repo):
        facts = HfApi().model_info(repo, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in facts.siblings or []}
    if INDEX not in sizes:
        raise HubError(f"{repo} is no release of groupsae: it has no {INDEX}. {OTHER_TOOLS}")
    scratch = folder.with_name(f".{folder.name}.pulling")
    with storage_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
    first = [name for name in FIRST if name in sizes]
    _require_space(scratch, sum(sizes[name] for name in first))
    _fetch(repo, facts.sha, first, sizes, scratch)
    wanted = list(sizes) if everything else _of_groups(scratch, sizes, layers)
    _require_space(scratch, sum(sizes[name] for name in wanted))
    _fetch(repo, facts.sha, wanted, sizes, scratch)
    _require_as_released(scratch, wanted)
    with storage_errors(folder):
        shutil.rmtree(scratch / ".cache", ignore_errors=True)
        scratch.rename(folder)
    return {name: sizes[name] for name in sorted({*wanted, *first})}


def _of_groups(folder: Path, names: Iterable[str], layers: Sequence[str]) -> list[str]:
    """The files of our own form, of the groups that hold these layers, or of all."""
    try:
        suites = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        partitions = [Partition(tuple(map(tuple, groups))) for groups in suites.values()]
    except (ValueError, TypeError, AttributeError) as error:
        raise HubError(f"The release is damaged: {INDEX} does not name groups ({error}).") from error
    if layers:
        partitions = [partition.around(layers) for partition in partitions]
    folders = tuple(f"groups/{group_name(group)}/" for partition in partitions for group in partition.groups)
    return [name for name in names if name.startswith(folders)]


def _fetch(repo: str, commit: str | None, names: Sequence[str], sizes: Mapping[str, int], folder: Path) -> None:
    from huggingface_hub import hf_hub_download

    total = sum(sizes[name] for name in names)
    with bar("downloading", total, "bytes") as advance:
        for name in names:
            within(folder, name)
            with hub_errors(repo):
                hf_hub_download(repo, name, revision=commit, local_dir=folder)
            advance(sizes[name])


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed * SLACK > free:
        raise StorageError(
            f"{format_bytes(needed)} are to be downloaded, and {folder} has {format_bytes(free)} of space. "
            "Free space, give another place with --out, or name fewer layers with --layer."
        )


def _require_as_released(folder: Path, names: Iterable[str]) -> None:
    """Raises RunError for a file that is not as `release.json` describes it, and removes it, to be fetched again."""
    file = folder / ReleaseRecord.path
    if not file.exists():
        return
    try:
        release = ReleaseRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise HubError(f"The release is damaged: {ReleaseRecord.path}: {error.errors()[0]['msg']}.") from error
    for name in names:
        promised = release.files.get(name)
        if promised is not None and describe(folder / name) != promised.model_dump():
            (folder / name).unlink()
            raise RunError(f"{name} is not as the release describes it (SHA-256 differs). Run the same again.")
