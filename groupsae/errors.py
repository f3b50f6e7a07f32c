"""Every error a user can cause or meet, as one tree.

    GroupsaeError                 exit code 2
    ├── ConfigError               a config file or flag: unknown key, wrong type, impossible value
    │   └── FitError              a run that does not fit into memory or onto the disk
    ├── ModelError                a model that cannot be loaded or has no blocks
    │   └── HookpointError        a place that the model does not have
    ├── TextError                 text that is missing, empty or too short
    ├── PartitionError            layers that do not form a partition, an impossible number of groups
    ├── RunError                  a run directory that is incomplete, damaged or belongs to another config
    │   └── StorageError          the disk: full, read-only, no permission
    ├── RanksError                several processes: one failed or was lost, or they do not agree
    ├── HubError                  a repository on the Hugging Face hub: missing, closed, out of reach
    └── NumericalError            NaN or infinity in activations, loss or weights

    Interrupted                   Ctrl-C, SIGTERM or SIGUSR1, exit code 130, 143 or 138; no error, so it stands outside

Each message says what was asked, what was found, what is allowed and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GroupsaeError(Exception):
    """What every error of this package is."""


class ConfigError(GroupsaeError):
    """A config file, flag or argument holds an unknown key, a wrong type or an impossible value."""


class FitError(ConfigError):
    """A run is predicted not to fit into memory or onto the disk; the message proposes one that does."""


class ModelError(GroupsaeError):
    """A language model cannot be loaded, or does not have the form that is needed."""


class HookpointError(ModelError):
    """A hookpoint names nothing in the model, or not what is needed."""


class TextError(GroupsaeError):
    """The text is missing, unreadable, empty or too short for what was asked."""


class PartitionError(GroupsaeError):
    """Groups that overlap, miss a layer or name an unknown one; or no partition meets what was asked."""


class RunError(GroupsaeError):
    """A run directory lacks a stage, is damaged, or belongs to another config."""


class StorageError(RunError):
    """The disk refused: full, read-only, or no permission. What was there before is intact."""


class HubError(GroupsaeError):
    """A repository on the Hugging Face hub is missing, may not be read or written, or cannot be reached."""


class RanksError(GroupsaeError):
    """Of several processes that work together one failed or was lost, or they see different configs or files.

    `mine` says whether this process is the one to tell of it.
    """

    def __init__(self, message: str, *, mine: bool = True) -> None:
        super().__init__(message)
        self.mine = mine


class NumericalError(GroupsaeError):
    """NaN or infinity where a number is needed; the last good state is kept."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work in good order; `signal` is its number, the message says how to go on."""

    def __init__(self, signal: int, message: str = "") -> None:
        super().__init__(message)
        self.signal = signal


def meant(name: str, known: Iterable[str]) -> str:
    """A question with the nearest known name, after a space; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that there is not: what it should have been of, the nearest, and all known."""
    names = list(known)
    return f"There is no {what} {name!r}.{meant(name, names)} Known are {', '.join(names)}."
