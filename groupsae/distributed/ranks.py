"""The ranks of a run: one process, or several that torchrun started, which exchange tensors and JSON.

One process is a world of one: the same calls, without a process group. What ranks tell each other is JSON in
tensors of bytes, so nothing is pickled. A rank that fails leaves its error in the store, where the others find it
once a collective no longer works.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from groupsae.errors import ConfigError, RanksError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

TIMEOUT_VARIABLE = "GROUPSAE_TIMEOUT"
DEFAULT_TIMEOUT = 1800.0
"""Seconds that a rank waits for the others, unless GROUPSAE_TIMEOUT says otherwise."""
FAILURE_KEY = "groupsae/failure"
FAILURE_SECONDS = 2.0
"""How long a rank whose collective failed waits for word of the cause."""


class Ranks:
    """This process' place among the ranks. `rank` counts from 0 up to `size`; `hosts` names each rank's machine."""

    def __init__(
        self, rank: int = 0, size: int = 1, *, store: Store | None = None, group: ProcessGroup | None = None
    ) -> None:
        self.rank, self.size = rank, size
        self._store, self._group = store, group
        self.waited = 0.0
        """Seconds spent in calls that wait for the others."""

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what is not a group's own."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on all of them. A value is anything that JSON can hold."""
        if self.alone:
            return [value]
        payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with self._collective():
            length_1 = torch.tensor([len(payload)])
            lengths = [torch.empty_like(length_1) for _ in range(self.size)]
            torch.distributed.all_gather(lengths, length_1, group=self._group)
            longest = max(int(length) for length in lengths)
            padded = torch.cat([payload, payload.new_zeros(longest - len(payload))])
            texts = [torch.empty_like(padded) for _ in range(self.size)]
            torch.distributed.all_gather(texts, padded, group=self._group)
        pairs = zip(texts, lengths, strict=True)
        return [json.loads(bytes(text[: int(length)].tolist())) for text, length in pairs]

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on all ranks; the values of the others do not count."""
        return self.gather(value if self.first else None)[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

    def wait_for_first(self) -> None:
        """Wait until rank 0 is here, however long its own work takes. Raises RanksError if another rank fails."""
        if self.alone:
            return
        self._turns = getattr(self, "_turns", 0) + 1
        key = f"groupsae/first/{self._turns}"
        if self.first:
            self._store.set(key, "here")
        began = time.perf_counter()
        while not self._store.check([key]):
            if self._store.check([FAILURE_KEY]):
                raise RanksError(self._cause())
            time.sleep(0.05)
        self.waited += time.perf_counter() - began

    def add(self, total: Tensor) -> Tensor:
        """The sum of every rank's tensor, in the same order on all of them, so that all have the same bits."""
        if self.alone:
            return total
        with self._collective():
            parts = [torch.empty_like(total) for _ in range(self.size)]
            torch.distributed.all_gather(parts, total.contiguous(), group=self._group)
        result = parts[0]
        for part in parts[1:]:
            result = result + part
        return result

    def all_gather(self, part: Tensor) -> list[Tensor]:
        """Every rank's tensor, all of one shape, in the order of ranks."""
        if self.alone:
            return [part]
        with self._collective():
            parts = [torch.empty_like(part) for _ in range(self.size)]
            torch.distributed.all_gather(parts, part.contiguous(), group=self._group)
        return parts

    def all_to_all(self, into: Tensor, sent: Tensor, into_splits: Sequence[int], sent_splits: Sequence[int]) -> None:
        """Bytes (n,) to every rank and from every rank, so many of each, zero allowed; `into` is filled in place."""
        with self._collective():
            torch.distributed.all_to_all_single(into, sent, list(into_splits), list(sent_splits), group=self._group)

    def subset(self, members: Sequence[int]) -> Ranks | None:
        """Some of the ranks as ranks of their own; None where this one is not among them. All ranks must call it."""
        group = None if len(members) == 1 else torch.distributed.new_group(list(members))
        if self.rank not in members:
            return None
        return Ranks(list(members).index(self.rank), len(members), store=self._store, group=group)

    def require_alike(self, facts: Mapping[str, Any], *, remedy: str) -> None:
        """Raises RanksError, on all ranks, if facts differ between ranks: which, and who has what."""
        told = self.gather([platform.node(), dict(facts)])
        different = [
            f"{name}: {_by_value([(rank, host, theirs.get(name)) for rank, (host, theirs) in enumerate(told)])}"
            for name in facts
            if any(theirs.get(name) != told[0][1].get(name) for _, theirs in told)
        ]
        if different:
            raise RanksError(f"The ranks do not agree. {'; '.join(different)}. {remedy}")

    def fail(self, error: BaseException) -> None:
        """Leave the error of this rank for the others, unless one of them failed before."""
        if self._store is not None:
            text = " ".join(str(error).split()) or type(error).__name__
            line = f"rank {self.rank} on {platform.node()} failed first: {type(error).__name__}: {text}"
            with contextlib.suppress(Exception):  # the store may be gone with the rank that kept it
                self._store.compare_set(FAILURE_KEY, "", line)

    @contextlib.contextmanager
    def _collective(self) -> Iterator[None]:
        """Turns a collective that fails into the first cause, on one line."""
        began = time.perf_counter()
        try:
            yield
        except RuntimeError as error:  # gloo and nccl have no narrower error for a lost peer or a timeout
            raise RanksError(self._cause(error)) from error
        finally:
            self.waited += time.perf_counter() - began

    def _cause(self, error: Exception | None = None) -> str:
        """The error that the first failing rank left; else what is known from here."""
        with contextlib.suppress(Exception):  # a store that is gone tells nothing
            if self._store.check([FAILURE_KEY]) or self._wait_for_word():
                return self._store.get(FAILURE_KEY).decode()
        seen = " ".join(str(error).split())[:200]
        return (
            f"rank {self.rank} on {platform.node()} lost the others: one was killed, or did not answer in time ({seen})"
        )

    def _wait_for_word(self) -> bool:
        with contextlib.suppress(RuntimeError):
            self._store.wait([FAILURE_KEY], timedelta(seconds=FAILURE_SECONDS))
            return True
        return False


ALONE = Ranks()
"""The world of one."""


def wanted_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks torchrun started; 1 without it."""
    return int(environment.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in environment else 1


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started, joined while the block runs; a world of one without it.

    An error that leaves the block is told to the others. Raises ConfigError for a port that is taken or a timeout
    that is no number, RanksError if another rank does not come.
    """
    if wanted_size() == 1:
        yield ALONE
        return
    ranks = _join()
    try:
        yield ranks
    except BaseException as error:
        ranks.fail(error)
        raise
    torch.distributed.destroy_process_group()


def _join() -> Ranks:
    import torch.distributed as dist

    limit = timedelta(seconds=_timeout())
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise ConfigError(
                f"The port of {place} is in use. Give torchrun another one with --master-port, or let it choose with "
                "--standalone."
            ) from error
        seen = " ".join(str(error).split())[:200]
        raise RanksError(f"The ranks did not meet at {place} within {limit.total_seconds():.0f} s: {seen}") from error
    return Ranks(rank, size, store=store)


def _timeout() -> float:
    given = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{TIMEOUT_VARIABLE} = {given!r}; give a number of seconds above 0, such as 1800.")
    return seconds


def _by_value(seen: Sequence[tuple[int, str, Any]]) -> str:
    """Who has which value, in words."""
    values: dict[str, list[str]] = {}
    for rank, host, value in seen:
        values.setdefault(str(value), []).append(f"{rank} ({host})")
    return ", ".join(f"{value!r} on rank {', '.join(who)}" for value, who in values.items())
