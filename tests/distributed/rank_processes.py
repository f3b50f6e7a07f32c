"""Ranks for tests: forks of this process, so that nothing is imported anew, joined by gloo on this machine."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import children

from groupsae import cli
from groupsae.distributed.launch import joined
from groupsae.distributed.ranks import Ranks

LONGEST = 60.0
"""Seconds after which ranks count as hung."""


class Failed(AssertionError):
    """A rank ended with an error; the message holds its traceback."""


def run_ranks(size: int, work: Callable[[Ranks], Any], *, longest: float = LONGEST, timeout: float = 30.0) -> list[Any]:
    """What `work` returns on each of `size` ranks. Raises Failed with the errors of all ranks that had one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pids = spawn_ranks(size, work, folder, timeout=timeout)
        codes = [wait(pid, longest) for pid in pids]
        errors = [(folder / f"error-{rank}") for rank in range(size)]
        told = [f"rank {rank}: {error.read_text()}" for rank, error in enumerate(errors) if error.exists()]
        if told or any(codes):
            raise Failed(f"exit codes {codes}\n" + "\n".join(told))
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(size)]


def spawn_ranks(size: int, work: Callable[[Ranks], Any], folder: Path, *, timeout: float = 30.0) -> list[int]:
    """The ids of `size` processes that do `work`; results and errors are left in a folder."""
    port = free_port()
    return [_spawn(rank, size, port, work, folder, timeout) for rank in range(size)]


def _spawn(rank: int, size: int, port: int, work: Callable[[Ranks], Any], folder: Path, timeout: float) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment_of(rank, size, port, timeout))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        try:
            with joined() as ranks:
                result = work(ranks)
            (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
            code = 0
        except BaseException:
            (folder / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def spawn_commands(size: int, arguments: Sequence[object], folder: Path, *, only: Sequence[object] = ()) -> list[int]:
    """The ids of `size` ranks that do a command together; what each says is left in `folder/err-RANK`.

    The last rank is also given the words `only`.
    """
    port = free_port()
    words = [[*map(str, arguments), *(map(str, only) if rank == size - 1 else ())] for rank in range(size)]
    return [_spawn_command(rank, environment_of(rank, size, port), words[rank], folder) for rank in range(size)]


def _spawn_command(rank: int, environment: dict[str, str], words: list[str], folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.environ.update(environment)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        code = cli.main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_commands(
    size: int, arguments: Sequence[object], folder: Path, *, only: Sequence[object] = ()
) -> tuple[list[int], list[str]]:
    """Exit codes of a command that `size` ranks do together, and what each wrote to stderr."""
    pids = spawn_commands(size, arguments, folder, only=only)
    codes = [wait(pid) for pid in pids]
    return codes, [(folder / f"err-{rank}").read_text() for rank in range(size)]


def environment_of(rank: int, size: int, port: int, timeout: float = 30.0) -> dict[str, str]:
    """What torchrun sets for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GROUPSAE_TIMEOUT": str(timeout),
    }


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(pid: int, longest: float = LONGEST) -> int:
    """A process' exit code, as `children.wait` has it, sooner given up."""
    return children.wait(pid, longest)
