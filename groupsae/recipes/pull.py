"""The pull verb: a release on the Hugging Face hub as a folder here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groupsae.errors import ConfigError
from groupsae.hub.download import download
from groupsae.hub.place import is_repository


def pull(
    repo: str,
    out: Path | None = None,
    *,
    layers: Sequence[str] = (),
    revision: str | None = None,
    everything: bool = False,
) -> dict[str, Any]:
    """Download a release into `out`, or `releases/NAME`; what was written where, as JSON.

    Raises ConfigError for a name that is no `user/name`, or layers together with `everything`; the rest as
    `groupsae.hub.download`.
    """
    if not is_repository(repo):
        raise ConfigError(f"{repo!r} is no id of a repository. Give USER/NAME.")
    if layers and everything:
        raise ConfigError("Give either --layer or --everything: the former is for a part of the release.")
    folder = out or Path("releases") / repo.split("/")[1]
    files = download(repo, folder, revision=revision, layers=layers, everything=everything)
    return {"folder": str(folder), "repo": repo, "files": files}
