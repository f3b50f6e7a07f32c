"""A hub id as a source of SAEs: its files, or some of them, on this machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from groupsae.errors import ConfigError, RunError, StorageError
from groupsae.progress import say

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+)?")
_SMALL = ("*.json", "*.md", "scaling_factors.pt")


def is_hub_id(source: str) -> bool:
    """Whether a source has the form `user/name`, or `user/name/folder`."""
    return bool(_ID.fullmatch(source)) and ".." not in source


def snapshot(source: str, only: Sequence[str] = ()) -> Path:
    """The folder on this machine that holds a hub repository's files, or those that `only` selects.

    Raises ConfigError without huggingface_hub, RunError if there is no such repository or no access to it, StorageError
    if there is no room for it.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
        )
    except ImportError as error:
        raise ConfigError(
            f"{source!r} is a hub id, which needs huggingface_hub: pip install 'groupsae[hub]'."
        ) from error
    name, _, below = _split(source)
    try:
        files = {file.rfilename: file.size or 0 for file in HfApi().repo_info(name, files_metadata=True).siblings or ()}
        chosen = _chosen(files, below, only)
        if not chosen:
            raise RunError(
                f"{name} holds no files below {below or 'its root'}" + f" that fit {', '.join(only)}." * bool(only)
            )
        _require_room(name, sum(files[file] for file in chosen))
        place = Path(snapshot_download(name, allow_patterns=chosen))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise RunError(f"{source!r} cannot be downloaded: {_why(error)}") from error
    except (OSError, ConnectionError) as error:
        raise StorageError(
            f"{source!r} cannot be downloaded: {error}. A folder on this machine works as well."
        ) from error
    return place / below if below else place


def _split(source: str) -> tuple[str, str, str]:
    user, name, *below = source.rstrip("/").split("/")
    return f"{user}/{name}", "/", "/".join(below)


def _chosen(files: dict[str, int], below: str, only: Sequence[str]) -> list[str]:
    """The files below a folder that fit one of the patterns, with the small files that describe them."""
    inside = [name for name in files if not below or name.startswith(f"{below}/")]
    if not only:
        return inside
    return [
        name
        for name in inside
        if any(fnmatch(name, f"*{pattern.strip('*')}*") for pattern in only)
        or any(fnmatch(Path(name).name, pattern) for pattern in _SMALL)
    ]


def _require_room(name: str, needed: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            f"{name} has {needed / 1e9:.1f} GB to download, and {place} has {free / 1e9:.1f} GB free. Choose fewer "
            "files with --only, or another place with HF_HOME."
        )
    say(f"import: downloading {needed / 1e9:.2f} GB of {name}, where it is not here already")


def _why(error: Exception) -> str:
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return "it is gated: accept its terms on the hub, and log in with `hf auth login`."
    if kind == "RepositoryNotFoundError":
        return "there is no such repository, or it is private: check the id, and log in with `hf auth login`."
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return "the hub is out of reach, and the files are not on this machine. Copy them here, and name their folder."
    return (str(error).strip().splitlines() or [kind])[0][:300]
