"""Where the files of a suite lie: a folder here, or a repository on the hub of which only what is needed is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, final

from groupsae.errors import HubError
from groupsae.hub.faults import hub_errors, is_network_error

INDEX = "suite.json"
"""The file that every suite has: its groups."""
OTHER_TOOLS = "`groupsae import` reads the SAEs of other tools."


class Place(Protocol):
    """A folder with the files of a suite, or with those that were asked for."""

    @property
    def folder(self) -> Path:
        """The folder."""

    def fetch(self, names: Iterable[str]) -> None:
        """Make sure that files, named by their path in the folder, are there if they can be had."""


def place_of(source: str | Path, revision: str | None = None) -> Place:
    """The place that a name stands for: a folder if there is one, else a repository `user/name` on the hub.

    A `Path` is always a folder.
    """
    if isinstance(source, str) and is_repository(source) and not Path(source).exists():
        try:
            return HubPlace(source, revision)
        except HubError as error:
            raise HubError(f"There is no folder {source!r} here. {error}") from error
    return LocalPlace(Path(source).expanduser())


def is_repository(name: str) -> bool:
    """Whether a name has the form `user/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


@final
class LocalPlace:
    """A folder on this machine; it has what it has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._folder

    def fetch(self, names: Iterable[str]) -> None:
        """Nothing is left to do."""


@final
class HubPlace:
    """A repository at one revision, in the cache of huggingface_hub.

    All files come from the commit that the first one came from. Raises HubError for a repository that is not there,
    may not be read, holds no suite, or cannot be reached and was not read before.
    """

    def __init__(self, repo: str, revision: str | None = None) -> None:
        self.repo = repo
        self._folder = self._first(revision)
        self.commit = self._folder.name

    @property
    def folder(self) -> Path:
        """The folder of the cache that holds this commit's files, as far as they were asked for."""
        return self._folder

    def fetch(self, names: Iterable[str]) -> None:
        """Download the files that are not there yet."""
        from huggingface_hub import hf_hub_download

        for name in names:
            with hub_errors(self.repo):
                hf_hub_download(self.repo, name, revision=self.commit)

    def _first(self, revision: str | None) -> Path:
        """The folder of the commit that is named; without network, of the one that was read last."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with hub_errors(self.repo):
            try:
                return Path(hf_hub_download(self.repo, INDEX, revision=revision)).parent
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):
                    raise
                raise HubError(f"{self.repo} is no release of groupsae: it has no {INDEX}. {OTHER_TOOLS}") from error
            except Exception as error:
                if not is_network_error(error):
                    raise
                try:
                    return Path(hf_hub_download(self.repo, INDEX, revision=revision, local_files_only=True)).parent
                except LocalEntryNotFoundError:
                    raise error from None
