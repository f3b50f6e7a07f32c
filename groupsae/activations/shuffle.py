"""The shuffle buffer: batches whose tokens come from many rows.

The order is a function of (seed, position), so that any position can be returned to: rows are
permuted once per epoch, read in blocks, and the tokens of a block are permuted again and dealt
into batches of nearly equal size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource, hash_seed, require_rows, row_order
from groupsae.errors import TextError


@dataclass(frozen=True)
class Position:
    """How far a stream has been read: blocks finished, batches of the block after them, tokens in all."""

    block: int = 0
    batch: int = 0
    tokens: int = 0


class ShuffledStream:
    """Batches x_LND of `num_tokens` shuffled tokens in all, read from any position on.

    Text that is shorter than `num_tokens` is read again, in a new order. The last batch is cut
    so that exactly `num_tokens` are given. `read_seconds` is the time spent reading the source.
    """

    def __init__(
        self, source: ActivationSource, num_tokens: int, *, batch_tokens: int, buffer_tokens: int, seed: int
    ) -> None:
        self.source, self.num_tokens, self.batch_tokens, self.seed = source, num_tokens, batch_tokens, seed
        require_rows(source)
        self.block_rows = max(1, round(buffer_tokens / source.row_tokens))
        self.read_seconds = 0.0
        self._buffer_LMD: Tensor | None = None

    def batches(self, start: Position = Position()) -> Iterator[tuple[Position, Tensor]]:
        """Each batch x_LND after `start`, with the position behind it."""
        position = start
        while position.tokens < self.num_tokens:
            block_LMD = self._read_block(position.block)
            for indices_N in self._deal(block_LMD.shape[1], position.block)[position.batch :]:
                x_LND = block_LMD[:, indices_N[: self.num_tokens - position.tokens].to(block_LMD.device)]
                position = Position(position.block, position.batch + 1, position.tokens + x_LND.shape[1])
                yield position, x_LND
                if position.tokens >= self.num_tokens:
                    return
            position = Position(position.block + 1, 0, position.tokens)

    def _read_block(self, block: int) -> Tensor:
        began = time.perf_counter()
        count = 0
        for rows in self._rows(block).split(self.source.batch_rows):
            x_LND = self.source.read(rows.tolist())
            if self._buffer_LMD is None:
                capacity = self.block_rows * self.source.row_tokens
                self._buffer_LMD = x_LND.new_empty(len(x_LND), capacity, x_LND.shape[2])
            self._buffer_LMD[:, count : count + x_LND.shape[1]] = x_LND
            count += x_LND.shape[1]
        if not count:
            raise TextError("A whole block of rows holds only special tokens; give other text or skip_special = false.")
        self.read_seconds += time.perf_counter() - began
        return self._buffer_LMD[:, :count]

    def _rows(self, block: int) -> Tensor:
        num_rows = self.source.num_rows
        places = torch.arange(block * self.block_rows, (block + 1) * self.block_rows)
        epochs = places // num_rows
        return torch.cat(
            [
                row_order(num_rows, self.seed, epoch)[places[epochs == epoch] % num_rows]
                for epoch in epochs.unique().tolist()
            ]
        )

    def _deal(self, count: int, block: int) -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(hash_seed(self.seed, "shuffle", block))
        return torch.randperm(count, generator=random).tensor_split(max(1, round(count / self.batch_tokens)))
