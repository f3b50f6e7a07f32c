"""The ranks of a run: one process, or several that torchrun started, which exchange tensors and JSON.

One process is a world of one: the same calls, without a process group. What ranks tell each other is JSON in
tensors of bytes, so nothing is pickled. A rank that fails leaves its error in the store, where the others find it
once a collective no longer works.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from groupsae.errors import RanksError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

FAILURE_KEY = "groupsae/failure"
LOST_KEY = "groupsae/lost"
FAILURE_SECONDS = 3.0
"""How long a rank whose collective failed waits for word of the cause."""
POLL_SECONDS = 0.05


class Ranks:
    """This process' place among the ranks. `rank` counts from 0 up to `size`; `hosts` names each rank's machine."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        store: Store | None = None,
        group: ProcessGroup | None = None,
        hosts: Sequence[str] = ("this machine",),
        world: Ranks | None = None,
    ) -> None:
        self.rank, self.size, self.hosts = rank, size, tuple(hosts)
        self._world = world or self
        self._store, self._group, self._turns = store, group, 0

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
        return [json.loads(text.numpy().tobytes()) for text in self._gather_bytes(payload)]

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on all ranks; the values of the others do not count."""
        return self.gather(value if self.first else None)[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

    @contextlib.contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Rank 0 does the block, however long it takes, before the others do it, who find there what it wrote."""
        if not self.first:
            self.wait_for_first()
        yield
        if self.first:
            self.wait_for_first()

    def wait_for_first(self) -> None:
        """Wait until rank 0 is here, however long its own work takes. Raises RanksError if another rank fails."""
        if self.alone:
            return
        self._turns += 1
        key = f"groupsae/first/{self._turns}"
        if self.first:
            self._store.set(key, "here")
        try:
            while not self._store.check([key]):
                if self._store.check([FAILURE_KEY]):
                    raise RanksError(self._cause())
                time.sleep(POLL_SECONDS)
        except RuntimeError as error:  # the store is gone, with the machine that kept it
            raise RanksError(self._cause(error)) from error

    def all_gather(self, part: Tensor) -> list[Tensor]:
        """Every rank's tensor, all of one shape and type, in the order of ranks."""
        if self.alone:
            return [part]
        with self._collective():
            parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
            torch.distributed.all_gather(parts, part.contiguous(), group=self._group)
        return parts

    def add(self, total: Tensor) -> Tensor:
        """The sum of every rank's tensor, in the same order on all of them, so that all have the same bits."""
        first, *others = self.all_gather(total)
        for part in others:
            first = first + part
        return first

    def add_array(self, total: np.ndarray) -> np.ndarray:
        """`add` for an array. Exact where no two ranks have something other than zero at the same place."""
        return total if self.alone else self.add(torch.from_numpy(total)).numpy()

    def gather_tensors(self, items: Sequence[tuple[Any, Sequence[Tensor]]]) -> list[list[tuple[Any, list[Tensor]]]]:
        """Every rank's items, in the order of ranks: each a value that JSON can hold, and tensors, on the CPU."""
        told = self.gather([[value, [[list(t.shape), str(t.dtype)] for t in tensors]] for value, tensors in items])
        own = [_bytes(t) for _, tensors in items for t in tensors]
        payloads = self._gather_bytes(torch.cat(own) if own else torch.empty(0, dtype=torch.uint8))
        found = []
        for payload, theirs in zip(payloads, told, strict=True):
            place, unpacked = 0, []
            for value, layout in theirs:
                tensors = []
                for shape, name in layout:
                    dtype = getattr(torch, name.removeprefix("torch."))
                    size = math.prod(shape) * dtype.itemsize
                    tensors.append(payload[place : place + size].clone().view(dtype).view(shape))
                    place += size
                unpacked.append((value, tensors))
            found.append(unpacked)
        return found

    def _gather_bytes(self, payload: Tensor) -> list[Tensor]:
        """Every rank's bytes (n,), of whatever length."""
        with self._collective():
            length_1 = torch.tensor([len(payload)])
            lengths = [torch.empty_like(length_1) for _ in range(self.size)]
            torch.distributed.all_gather(lengths, length_1, group=self._group)
            longest = max(int(length) for length in lengths)
            padded = torch.cat([payload, payload.new_zeros(longest - len(payload))])
            texts = [torch.empty_like(padded) for _ in range(self.size)]
            torch.distributed.all_gather(texts, padded, group=self._group)
        return [text[: int(length)] for text, length in zip(texts, lengths, strict=True)]

    def all_to_all(self, into: Tensor, sent: Tensor, into_splits: Sequence[int], sent_splits: Sequence[int]) -> None:
        """Bytes (n,) to every rank and from every rank, so many of each, zero allowed; `into` is filled in place."""
        with self._collective():
            torch.distributed.all_to_all_single(into, sent, list(into_splits), list(sent_splits), group=self._group)

    def subset(self, members: Sequence[int]) -> Ranks | None:
        """Some of the ranks as ranks of their own; None where this one is not among them. All ranks must call it."""
        group = None if len(members) == 1 else torch.distributed.new_group(list(members))
        if self.rank not in members:
            return None
        hosts, own = [self.hosts[rank] for rank in members], list(members).index(self.rank)
        return Ranks(own, len(members), store=self._store, group=group, hosts=hosts, world=self._world)

    def require_alike(self, facts: Mapping[str, Any], *, remedy: str) -> None:
        """Raises RanksError, on all ranks, if facts differ between ranks: which, and who has what."""
        told = self.gather(dict(facts))
        different = [
            f"{name}: {self._by_value([theirs.get(name) for theirs in told])}"
            for name in facts
            if any(theirs.get(name) != told[0].get(name) for theirs in told)
        ]
        if different:
            raise RanksError(f"The ranks do not agree. {'; '.join(different)}. {remedy}", mine=self.first)

    def _by_value(self, values: Sequence[Any]) -> str:
        """Who has which value, in words."""
        who: dict[str, list[str]] = {}
        for rank, value in enumerate(values):
            who.setdefault(str(value), []).append(f"rank {rank} on {self.hosts[rank]}")
        return ", ".join(f"{value!r} on {' and '.join(ranks)}" for value, ranks in who.items())

    def fail(self, error: BaseException) -> tuple[str, bool]:
        """Leave the error of this rank for the others, unless one of them failed before.

        Returns the first cause, on one line, and whether this rank was the first to tell of it.
        """
        text = " ".join(str(error).split()) or type(error).__name__
        line = text if isinstance(error, RanksError) else f"{self} failed first: {type(error).__name__}: {text}"
        with contextlib.suppress(Exception):  # the store may be gone with the rank that kept it
            kept = self._store.compare_set(FAILURE_KEY, "", json.dumps([self.rank, line])).decode()
            rank, line = json.loads(kept)
            return line, rank == self.rank
        return line, True

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.hosts[self.rank]}"

    @contextlib.contextmanager
    def _collective(self) -> Iterator[None]:
        """Turns a collective that fails into the first cause, on one line."""
        try:
            yield
        except RuntimeError as error:  # gloo and nccl have no narrower error for a lost peer or a timeout
            raise RanksError(self._cause(error)) from error

    def _cause(self, error: Exception | None = None) -> str:
        """The error that the first failing rank left; else which ranks no longer say a word."""
        lost, hosts = range(0), self._world.hosts
        with contextlib.suppress(Exception):  # a store that is gone tells nothing
            self._store.set(f"{LOST_KEY}/{self._world.rank}", "")
            until = time.monotonic() + FAILURE_SECONDS
            while time.monotonic() < until:
                if self._store.check([FAILURE_KEY]):
                    return json.loads(self._store.get(FAILURE_KEY))[1]
                time.sleep(POLL_SECONDS)
            lost = [rank for rank in range(len(hosts)) if not self._store.check([f"{LOST_KEY}/{rank}"])]
        who = " or ".join(f"rank {rank} on {hosts[rank]}" for rank in lost) or "another rank"
        seen = " ".join(str(error).split())[:160]
        return f"{who} was lost: killed, out of memory, cut off, or silent for too long ({seen})"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


ALONE = Ranks()
"""The world of one."""
