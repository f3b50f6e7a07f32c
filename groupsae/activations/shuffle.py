"""The shuffle buffer: batches whose tokens come from many rows.

The order is a function of (seed, position), so that any position can be returned to: rows are
permuted once per epoch, read in blocks, and the tokens of a block are permuted again and divided
into batches of nearly equal size. A block holds only what is trained on: of a group that sees one
layer of each token, the layer is drawn before the token is kept.

Several ranks read a block together: each the rows of some of the source's batches, which it then sends to the ranks
that train on them. A rank's block holds the tokens of all, in the same order as if it had read them alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource, hash_seed, require_rows, row_order
from groupsae.distributed.exchange import send_rows
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import TextError
from groupsae.partition import Group, group_name


@dataclass(frozen=True)
class Position:
    """How far a stream has been read: blocks finished, batches of the block after them, tokens in all.

    `begun` is the number of tokens before that block. `masked` counts the positions that the blocks begun so far were
    read without (`ActivationSource.num_masked`).
    """

    block: int = 0
    batch: int = 0
    tokens: int = 0
    masked: int = 0
    begun: int = 0


@dataclass(frozen=True)
class BufferLayout:
    """What a block keeps of each token: activations at the hookpoints `whole`, and one layer of each group in `drawn`.

    Slots are numbered in this order.
    """

    whole: tuple[str, ...]
    drawn: tuple[Group, ...] = ()

    @classmethod
    def of(cls, groups: Iterable[Group], *, every_layer: bool) -> BufferLayout:
        """The fewest slots that serve these groups, each token at one drawn layer of the group or at every one."""
        groups = tuple(dict.fromkeys(groups))
        whole = tuple(dict.fromkeys(name for group in groups if every_layer or len(group) == 1 for name in group))
        return cls(whole, tuple(group for group in groups if not set(group) <= set(whole)))

    def __len__(self) -> int:
        return len(self.whole) + len(self.drawn)

    def hookpoints_of(self, slot: int) -> Group:
        """The hookpoints that a slot is filled from: one, or those of a group of which one is drawn."""
        return (self.whole[slot],) if slot < len(self.whole) else self.drawn[slot - len(self.whole)]


class Block:
    """The tokens of a stretch of rows, in memory at once: x (C, M, D), one slot per line of `slots`.

    Which layer of a group a token is seen at first, second and so on is a random order of its layers,
    decided by seed, group, block and token.
    """

    def __init__(self, number: int, x_CMD: Tensor, slots: BufferLayout, seed: int, batch_tokens: int) -> None:
        self.number, self.slots, self.seed, self.batch_tokens = number, slots, seed, batch_tokens
        self._x_CMD, self.count, self.begun = x_CMD, 0, 0
        self._orders: dict[Group, Tensor] = {}
        self._slots: dict[Group, Tensor] = {}
        self._batches: dict[str, tuple[Tensor, ...]] = {}

    def add(self, x_LND: Tensor, hookpoints: Sequence[str]) -> None:
        """Keep more tokens, of which x_LND holds the activations at these hookpoints; slots of others stay empty."""
        start, self.count = self.count, self.count + x_LND.shape[1]
        for slot in range(len(self.slots)):
            x_ND = self.drawn(self.slots.hookpoints_of(slot), x_LND, hookpoints, start)
            if x_ND is not None:
                self._x_CMD[slot, start : self.count] = x_ND

    def drawn(self, group: Group, x_LND: Tensor, hookpoints: Sequence[str], start: int) -> Tensor | None:
        """What a slot keeps of tokens that begin at number `start` of the block, (N, D): each at the first layer in its
        random order of the group's layers. None if these hookpoints do not hold the group.
        """
        if not set(group) <= set(hookpoints):
            return None
        if len(group) == 1:
            return x_LND[hookpoints.index(group[0])]
        layers = torch.tensor([hookpoints.index(name) for name in group], device=x_LND.device)
        drawn_N = layers[self._order(group)[start : start + x_LND.shape[1], 0]]
        return x_LND[drawn_N, torch.arange(len(drawn_N), device=x_LND.device)]

    def receive(
        self,
        parts: Sequence[Tensor],
        hookpoints: Sequence[str],
        layouts: Sequence[BufferLayout],
        counts: Sequence[int],
        ranks: Ranks,
    ) -> None:
        """Fill the block from what all ranks have read: `parts` by this one, and `counts` tokens by each.

        `layouts` are the slots of each rank. All ranks fill one slot at a time, so that little is in memory twice.
        """
        self.count = sum(counts)
        starts = [sum(counts[: ranks.rank])]
        for x_LND in parts:
            starts.append(starts[-1] + x_LND.shape[1])
        for slot in range(max(map(len, layouts))):
            sent: list[Tensor | None] = []
            for layout in layouts:
                group = layout.hookpoints_of(slot) if slot < len(layout) else ("",)
                rows = [self.drawn(group, x, hookpoints, start) for x, start in zip(parts, starts, strict=False)]
                sent.append(torch.cat(rows) if rows and rows[0] is not None else None)
            into = self._x_CMD[slot, : self.count] if sent[ranks.rank] is not None else None
            send_rows(ranks, sent, into, counts)

    def shuffled_batches(self) -> tuple[Tensor, ...]:
        """The numbers of all tokens in random order, as batches of nearly `batch_tokens`."""
        if "shuffle" not in self._batches:
            order_M = self._permutation("shuffle", self.count)
            self._batches["shuffle"] = order_M.tensor_split(max(1, round(self.count / self.batch_tokens)))
        return self._batches["shuffle"]

    def _later_pass(self, group: Group, pass_: int, tokens: int) -> tuple[Tensor, ...]:
        """Of the first so many tokens of `shuffled_batches`, the same in another order, as batches of equal sizes."""
        what = f"shuffle/{group_name(group)}/{pass_}"
        if what not in self._batches:
            sizes = [len(batch_N) for batch_N in self.shuffled_batches()]
            order_M = self._permutation(what, tokens)
            if tokens < self.count:
                order_M = torch.cat(self.shuffled_batches())[:tokens][order_M]
            ends = torch.tensor(sizes).cumsum(0).clamp_max(tokens).tolist()
            self._batches[what] = order_M.tensor_split(ends[:-1])
        return self._batches[what]

    def _permutation(self, what: str, count: int) -> Tensor:
        random = torch.Generator().manual_seed(hash_seed(self.seed, what, self.number))
        return torch.randperm(count, generator=random).to(self._x_CMD.device)

    def read(self, group: Group, batch: int, pass_: int = 0, tokens_needed: int | None = None) -> tuple[Tensor, Tensor]:
        """The tokens of a batch as the group sees them in this pass: x (N, D), and which layer of the group each is of.

        Over `len(group)` passes each token of the block comes at each layer once, in another batch each time. Where
        the group needs no more than `tokens_needed` tokens of the stream, that holds for those of them in the block.
        """
        if pass_:
            left = self.count if tokens_needed is None else min(self.count, tokens_needed - self.begun)
            tokens_N = self._later_pass(group, pass_, left)[batch]
        else:
            tokens_N = self.shuffled_batches()[batch]
        layers_N = self._order(group)[tokens_N, pass_]
        if group in self.slots.drawn:
            return self._x_CMD[len(self.slots.whole) + self.slots.drawn.index(group), tokens_N], layers_N
        if len(group) == 1:
            return self._x_CMD[self.slots.whole.index(group[0]), tokens_N], layers_N
        return self._x_CMD[self._slots_of(group)[layers_N], tokens_N], layers_N

    def _slots_of(self, group: Group) -> Tensor:
        if group not in self._slots:
            slots = [self.slots.whole.index(name) for name in group]
            self._slots[group] = torch.tensor(slots, device=self._x_CMD.device)
        return self._slots[group]

    def _order(self, group: Group) -> Tensor:
        if group not in self._orders:
            random = torch.Generator().manual_seed(hash_seed(self.seed, f"layers/{group_name(group)}", self.number))
            order = torch.rand(self._x_CMD.shape[1], len(group), generator=random).argsort(1)
            self._orders[group] = order.to(self._x_CMD.device)
        return self._orders[group]


@dataclass(frozen=True)
class Batch:
    """One batch of a block: the first `count` tokens of the batch with this number."""

    block: Block
    number: int
    count: int

    @property
    def last(self) -> bool:
        """Whether it is the last batch of its block."""
        return self.number == len(self.block.shuffled_batches()) - 1

    def read(self, group: Group, pass_: int = 0, tokens_needed: int | None = None) -> tuple[Tensor, Tensor]:
        """The batch as a group sees it: x (N, D), and which layer of the group each token is of (N,).

        `tokens_needed` is how many tokens of the stream the group sees in all.
        """
        x_ND, layers_N = self.block.read(group, self.number, pass_, tokens_needed)
        return x_ND[: self.count], layers_N[: self.count]


@dataclass
class ShuffledStream:
    """Batches of `num_tokens` shuffled tokens in all, read from any position on.

    Text that is shorter than `num_tokens` is read again, in a new order. The last batch is cut
    so that exactly `num_tokens` are given. `needed` says, block by block, at which hookpoints
    activations are still wanted. `read_seconds` is the time spent reading the source, `keep_seconds`
    that spent on filling the buffer, `wait_seconds` that spent waiting for other ranks.

    With several `ranks`, `layouts` are the slots of each, and `row_counts` says how many of so many rows each rank
    reads, in whole batches of the size that is its second argument. Whenever the ranks meet, which is once per block,
    `message` says what this one tells the others in passing, and `heard` receives what all of them told.
    """

    source: ActivationSource
    num_tokens: int
    slots: BufferLayout
    batch_tokens: int
    buffer_tokens: int
    seed: int
    needed: Callable[[], Sequence[str]] | None = None
    ranks: Ranks = ALONE
    layouts: Sequence[BufferLayout] = ()
    row_counts: Callable[[int, int], Sequence[int]] = lambda rows, batch: (rows,)
    message: Callable[[], Any] = lambda: None
    heard: Callable[[list[Any]], None] = lambda told: None
    read_seconds: float = 0.0
    keep_seconds: float = 0.0
    wait_seconds: float = 0.0
    _x_CMD: Tensor | None = field(default=None, repr=False)

    def batches(self, start: Position = Position()) -> Iterator[tuple[Position, Batch]]:
        """Each batch after `start`, with the position behind it. A batch is good until the next one is asked for."""
        require_rows(self.source)
        position = start
        while position.tokens < self.num_tokens:
            block, masked = self._read_block(position.block)
            if position.batch == 0:  # otherwise it was begun, and counted, before
                position = replace(position, masked=position.masked + masked, begun=position.tokens)
            block.begun = position.begun
            for number in range(position.batch, len(block.shuffled_batches())):
                count = min(len(block.shuffled_batches()[number]), self.num_tokens - position.tokens)
                position = replace(position, batch=number + 1, tokens=position.tokens + count)
                yield position, Batch(block, number, count)
                if position.tokens >= self.num_tokens:
                    return
            position = replace(position, block=position.block + 1, batch=0)

    def _read_block(self, number: int) -> tuple[Block, int]:
        """A block, and how many positions it was read without."""
        source, block = self._narrowed(), None
        before = source.num_masked
        if not self.ranks.alone:
            block, masked = self._read_together(number, source)
        else:
            for x_LND in self._parts(number, source):
                began = time.perf_counter()
                block = block or self._block(number, x_LND)
                block.add(x_LND, source.hookpoints)
                self.keep_seconds += time.perf_counter() - began
            masked = source.num_masked - before
        if block is None or not block.count:
            raise TextError("A whole block of rows holds only special tokens; give other text or skip_special = false.")
        return block, masked

    def _read_together(self, number: int, source: ActivationSource) -> tuple[Block, int]:
        """A block that all ranks have read parts of, and how many positions they left out."""
        before = source.num_masked
        parts = list(self._parts(number, source)) or [source.read([])]
        tokens = sum(x_LND.shape[1] for x_LND in parts)
        began = time.perf_counter()
        told = self.ranks.gather([tokens, source.num_masked - before, self.message()])
        self.wait_seconds += time.perf_counter() - began
        self.heard([message for _, _, message in told])
        began = time.perf_counter()
        block = self._block(number, parts[0])
        block.receive(parts, source.hookpoints, self.layouts, [count for count, _, _ in told], self.ranks)
        self.keep_seconds += time.perf_counter() - began
        return block, sum(masked for _, masked, _ in told)

    def _parts(self, number: int, source: ActivationSource) -> Iterator[Tensor]:
        """This rank's share of a block, as the source gives it, a batch of rows at a time."""
        of_block = self._rows(number)
        counts = self.row_counts(len(of_block), source.batch_rows)
        for rows in of_block.split(list(counts))[self.ranks.rank].split(source.batch_rows):
            if not len(rows):
                return
            began = time.perf_counter()
            x_LND = source.read(rows.tolist())
            self.read_seconds += time.perf_counter() - began
            yield x_LND

    def _block(self, number: int, x_LND: Tensor) -> Block:
        return Block(number, self._memory(x_LND), self.slots, self.seed, self.batch_tokens)

    def _narrowed(self) -> ActivationSource:
        needed = set(self.needed() if self.needed else self.source.hookpoints)
        kept = tuple(name for name in self.source.hookpoints if name in needed)
        return self.source if kept == self.source.hookpoints else self.source.narrowed(kept)

    def _memory(self, x_LND: Tensor) -> Tensor:
        if self._x_CMD is None:
            self._x_CMD = x_LND.new_empty(len(self.slots), self._block_rows * self.source.row_tokens, x_LND.shape[2])
        return self._x_CMD

    @property
    def _block_rows(self) -> int:
        return max(1, round(self.buffer_tokens / self.source.row_tokens))

    def _rows(self, block: int) -> Tensor:
        num_rows = self.source.num_rows
        places = torch.arange(block * self._block_rows, (block + 1) * self._block_rows)
        epochs = places // num_rows
        return torch.cat(
            [
                row_order(num_rows, self.seed, epoch)[places[epochs == epoch] % num_rows]
                for epoch in epochs.unique().tolist()
            ]
        )
