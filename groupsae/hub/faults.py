"""What goes wrong between here and the Hugging Face hub, as errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from groupsae.errors import HubError, StorageError

NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
"""Libraries whose errors mean that the hub was not reached, or the connection broke."""
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."


@contextlib.contextmanager
def hub_errors(repo: str, *, writing: bool = False) -> Iterator[None]:
    """Turns errors of huggingface_hub, of the network and of the disk into HubError and StorageError."""
    try:
        yield
    except Exception as error:
        translated = _translated(error, repo, writing)
        if translated is None:
            raise
        raise translated from error


def _translated(error: Exception, repo: str, writing: bool) -> Exception | None:
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            return HubError(f"{repo!r} is no id of a repository: {error} Give USER/NAME.")
        case errors.GatedRepoError():
            return HubError(
                f"{repo} is gated: its owner decides who may read it. Open its page on the hub, accept its terms, "
                f"and try again. {LOG_IN}"
            )
        case errors.RepositoryNotFoundError():
            return HubError(f"The hub has no repository {repo}, or it is private and you may not see it. {LOG_IN}")
        case errors.RevisionNotFoundError():
            return HubError(f"{repo} has no such revision. Give a branch, a tag, or the hash of a commit.")
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return _unreachable(repo, error)
        case errors.EntryNotFoundError():
            return HubError(f"{repo} lacks a file that it should have: {_first_line(error)}")
        case errors.LocalTokenNotFoundError():
            return HubError(f"Writing to {repo} needs a token. {LOG_IN}")
        case errors.HfHubHTTPError():
            return _refused(repo, error, writing)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(f"The disk is full; {repo} cannot be stored. Free space, and run the same again.")
        case OSError() if "Consistency check failed" in str(error):
            return HubError(f"A file of {repo} did not arrive whole. Run the same again; what has arrived is kept.")
    return _unreachable(repo, error) if is_network_error(error) else None


def is_network_error(error: Exception) -> bool:
    """Whether an error means that the hub was not reached, or did not answer to the end."""
    return isinstance(error, ConnectionError) or type(error).__module__.split(".")[0] in NETWORK


def _unreachable(repo: str, error: Exception) -> HubError:
    return HubError(
        f"The hub could not be reached for {repo}, and this machine has no copy: {_first_line(error)} "
        "Run the same again when it can; what has arrived is kept."
    )


def _refused(repo: str, error: Exception, writing: bool) -> HubError:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403) and writing:
        return HubError(
            f"The hub does not let you write to {repo}: {_first_line(error)} {LOG_IN} The token needs write access."
        )
    return HubError(f"The hub refused {repo}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
