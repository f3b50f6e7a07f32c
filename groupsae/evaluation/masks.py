"""Which rows are evaluated, and which of their positions count.

Every result comes twice: at the positions the SAEs were trained on, and at the others' choice. The
first `Scope` is the source's own (special tokens left out, unless it keeps them), the second is the
opposite. `C` is the dimension of the two scopes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.source import PositionSource, row_order
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import TextError

Scope = Literal["outliers left out", "all positions"]
"""Whether positions that hold a special token (begin and end of text, padding), and outliers, count."""


def scopes(source: PositionSource) -> tuple[Scope, Scope]:
    """The source's own scope, and the other one."""
    if source.skip_special:
        return "outliers left out", "all positions"
    return "all positions", "outliers left out"


def counted(source: PositionSource, special_BT: Tensor) -> Tensor:
    """keep_CBT: the positions that count in each of `scopes(source)`."""
    kept = {"outliers left out": ~special_BT, "all positions": torch.ones_like(special_BT)}
    return torch.stack([kept[scope] for scope in scopes(source)])


def chosen_rows(source: PositionSource, num_tokens: int, seed: int) -> Tensor:
    """The rows to evaluate on, whole, in random order decided by the seed: at least `num_tokens` positions, or all.

    Raises TextError if there is none.
    """
    chosen = row_order(source.num_rows, seed, 0)[: -(-num_tokens // source.row_tokens)]
    if not len(chosen):
        raise nothing_left()
    return chosen


def nothing_left() -> TextError:
    """The error for a source without a token that counts."""
    return TextError("No held-out token is left to evaluate on; give more text or a larger held_out_share.")


def own_batches(batches: Iterable[Tensor], ranks: Ranks) -> Iterator[tuple[slice, Tensor, bool]]:
    """Each batch of rows, where it lies among all rows, and whether this rank is to evaluate it: they take turns."""
    start = 0
    for number, batch in enumerate(batches):
        yield slice(start, start + len(batch)), batch, number % ranks.size == ranks.rank
        start += len(batch)


class MeanActivations:
    """Each hookpoint's mean activation over the rows, mean_CLD (float64), in both scopes, and the tokens counted.

    Several ranks share the reading; batches are added in their order, so all have the bits that one would have.
    """

    def __init__(self, source: PositionSource, rows: Tensor, ranks: Ranks = ALONE) -> None:
        sum_CLD = torch.zeros(2, len(source.hookpoints), source.d_model, dtype=torch.float64, device=source.device)
        self.counts = np.zeros(2, dtype=np.int64)
        batches = rows.split(source.batch_rows)
        for first in range(0, len(batches), ranks.size):
            own = batches[first + ranks.rank : first + ranks.rank + 1]
            sums = [(0, self._sums(source, batch)) for batch in own]
            for theirs in [sums] if ranks.alone else ranks.gather_tensors(sums):
                for _, (part_CLD, counts_C) in theirs:
                    sum_CLD += part_CLD.to(sum_CLD.device)
                    self.counts += counts_C.cpu().numpy()
        if not self.counts[0]:
            raise nothing_left()
        counts_C = torch.as_tensor(self.counts, device=source.device).clamp_min(1)
        self.mean_CLD = sum_CLD / counts_C[:, None, None]

    @staticmethod
    def _sums(source: PositionSource, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over a batch's positions (C, L, D), and how many count (C,)."""
        x_LBTD, special_BT = source.read_positions(batch.tolist())
        keep_CBT = counted(source, special_BT)
        sums = [x_LBTD[:, keep_BT].sum(1, dtype=torch.float64) for keep_BT in keep_CBT]
        return torch.stack(sums), keep_CBT.sum((1, 2))
