"""Uploads a folder to a repository on the Hugging Face hub, as one commit."""

from __future__ import annotations

from pathlib import Path

from groupsae.errors import HubError
from groupsae.hub.faults import hub_errors
from groupsae.hub.place import INDEX

KEPT = (".gitattributes",)
"""Files that the hub puts into a repository itself."""


def files_of(folder: Path) -> dict[str, Path]:
    """The files below a folder by their path in it, in order."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def upload(folder: Path, repo: str, *, private: bool, overwrite: bool, message: str) -> str:
    """Make `repo` hold the files of a folder, and nothing else; returns the address of the commit.

    It is made if it is not there. Raises HubError if it holds anything already; with `overwrite`, if that is no release
    of groupsae, or if the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, files = HfApi(), files_of(folder)
    with hub_errors(repo, writing=True):
        there = _files_there(api, repo)
        _require_free(repo, there or [], overwrite)
        if there is None:
            api.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in there or [] if name not in {*files, *KEPT}]
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)


def _files_there(api: object, repo: str) -> list[str] | None:
    """The files of a repository; None if there is no such repository."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return list(api.list_repo_files(repo))  # type: ignore[attr-defined]
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _require_free(repo: str, there: list[str], overwrite: bool) -> None:
    names = [name for name in there if name not in KEPT]
    if names and INDEX not in names:
        shown = ", ".join(names[:3])
        raise HubError(f"{repo} holds something else than a release of groupsae ({shown}). Give another repository.")
    if names and not overwrite:
        raise HubError(f"{repo} holds a release already. Replace it with --overwrite, or give another repository.")
