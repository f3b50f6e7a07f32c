"""The command line: parse a verb, call a recipe, print, turn errors into exit codes.

    groupsae VERB RUN [--flags]          RUN is a TOML file or a run directory

Progress goes to stderr, results to stdout. Exit codes: 0 done, 1 our fault, 2 the user's,
130 interrupted by Ctrl-C, 143 by SIGTERM, 138 by SIGUSR1.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from signal import SIGINT

from groupsae.cli.commands import init, merge, run, show
from groupsae.cli.export import export
from groupsae.cli.harvest import harvest
from groupsae.cli.hub import pull, push
from groupsae.cli.importing import import_saes
from groupsae.cli.interpret import interpret
from groupsae.cli.transfer import transfer
from groupsae.cli.verbs import OTHER_VERBS, STAGE_VERBS, list_verbs, require_verb
from groupsae.distributed.launch import joined, one_voice, wanted_size
from groupsae.errors import ConfigError, GroupsaeError
from groupsae.interrupt import terminable
from groupsae.progress import say

__all__ = ["OTHER_VERBS", "STAGE_VERBS", "exit_code", "main"]

ABOUT = """\
groupsae trains sparse autoencoders (SAEs) for every layer of a language model at a fraction of the usual cost.

usage: groupsae VERB RUN [--flags]

RUN is a TOML file, or the directory of an earlier run. `groupsae init my.toml` writes a file to start from.
Progress goes to stderr, results to stdout; --json prints them for scripts. Exit codes: 0 done, 1 a fault of
groupsae, 2 wrong input, 130 interrupted by Ctrl-C, 143 by SIGTERM, 138 by SIGUSR1."""

_COMMANDS = {
    "init": init,
    "show": show,
    "harvest": harvest,
    "merge": merge,
    "transfer": transfer,
    "interpret": interpret,
    "export": export,
    "import": import_saes,
    "push": push,
    "pull": pull,
}
"""The verbs that are no stages of a run, nor all of them."""
_ALONE_VERBS = ("init", "show", "merge", "export")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Under torchrun this process is one of the ranks that run it together."""
    command = _dispatch if wanted_size() == 1 else _dispatch_as_rank
    return exit_code(command, sys.argv[1:] if arguments is None else arguments)


def exit_code(command: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Run a command on its arguments; print its error, if any, and return its exit code."""
    try:
        with terminable():
            command(arguments)
            return 0
    except GroupsaeError as error:
        say(f"{type(error).__name__}: {error}")
        return 2
    except KeyboardInterrupt as stopped:
        say(str(stopped) or "Interrupted. The same command goes on from the last checkpoint.")
        return 128 + getattr(stopped, "signal", SIGINT)
    except BrokenPipeError:
        return 0
    except SystemExit as stop:  # tyro, after help or a wrong flag
        return int(stop.code or 0)
    except Exception:
        traceback.print_exc()
        say("This is a fault of groupsae, not yours. Please report it with the lines above.")
        return 1


def _dispatch_as_rank(arguments: list[str]) -> None:
    with one_voice(), joined():
        if arguments and arguments[0] in _ALONE_VERBS:
            raise ConfigError(f"`groupsae {arguments[0]}` is done by one process; call it without torchrun.")
        _dispatch(arguments)


def _dispatch(arguments: list[str]) -> None:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        print(f"{ABOUT}\n\n{list_verbs()}")
    elif verb == "--version":
        print(version("groupsae"))
    elif verb in _COMMANDS:
        _COMMANDS[verb](rest)
    else:
        require_verb(verb)
        run(verb, rest)
