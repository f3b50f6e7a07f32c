"""Joining the ranks that torchrun started, and leaving them in good order.

Without torchrun a process is a world of one, and torch is not imported for it here.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from groupsae.errors import ConfigError, GroupsaeError, Interrupted, RanksError

if TYPE_CHECKING:
    from groupsae.distributed.ranks import Ranks

TIMEOUT_VARIABLE = "GROUPSAE_TIMEOUT"
DEFAULT_TIMEOUT = 1800.0
"""Seconds that a rank waits for the others, unless GROUPSAE_TIMEOUT says otherwise."""
USERS_FAULT = 2

_joined: list[Ranks] = []


def wanted_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks torchrun started; 1 without it."""
    return int(environment.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in environment else 1


def current_ranks() -> Ranks:
    """The ranks that this process has joined; a world of one if it has not."""
    from groupsae.distributed.ranks import ALONE

    return _joined[-1] if _joined else ALONE


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started, joined while the block runs; a world of one without it.

    An error that leaves the block is told to the others. Raises ConfigError for a port that is taken or a timeout
    that is no number, RanksError if another rank does not come, or if another one failed first.
    """
    if wanted_size() == 1:
        yield current_ranks()
        return
    import torch

    ranks = _join()
    _joined.append(ranks)
    try:
        yield ranks
        ranks.barrier()  # rank 0 may keep the store, which the others need to the end
    except BaseException as error:
        cause, mine = ranks.fail(error)
        if isinstance(error, GroupsaeError):
            raise RanksError(cause, mine=mine and getattr(error, "mine", True)) from error
        raise
    else:
        torch.distributed.destroy_process_group()
    finally:
        _joined.remove(ranks)


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """While the block runs, only rank 0 writes to stdout and stderr.

    Another rank tells of its error if it is the first of all; where it only follows another one's, it ends in silence.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere:
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        except RanksError as error:
            if error.mine:
                raise
            raise SystemExit(USERS_FAULT) from error
        except Interrupted as stopped:
            raise SystemExit(128 + stopped.signal) from stopped


def _join() -> Ranks:
    import torch
    import torch.distributed as dist

    from groupsae.distributed.ranks import Ranks

    seconds = _timeout()
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        limit = timedelta(seconds=seconds)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise ConfigError(
                f"The port of {place} is in use. Give torchrun another one with --master-port, or let it choose with "
                "--standalone."
            ) from error
        seen = " ".join(str(error).split())[:200]
        raise RanksError(f"The ranks did not meet at {place} within {seconds:.0f} s: {seen}") from error
    ranks = Ranks(rank, size, store=store, hosts=["?"] * size)
    ranks.hosts = tuple(ranks.gather(platform.node()))
    return ranks


def _timeout() -> float:
    given = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{TIMEOUT_VARIABLE} = {given!r}; give a number of seconds above 0, such as 1800.")
    return seconds
