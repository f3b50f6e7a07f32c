"""Which rows are evaluated, and which of their positions count.

Every result comes twice: at the positions the SAEs were trained on, and at the others' choice. The
first `Scope` is the source's own (special tokens left out, unless it keeps them), the second is the
opposite. `C` is the dimension of the two scopes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.source import PositionSource, row_order
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


class MeanActivations:
    """Each hookpoint's mean activation over the rows, mean_CLD (float64), in both scopes, and the tokens counted."""

    def __init__(self, source: PositionSource, rows: Tensor) -> None:
        sum_CLD = torch.zeros(2, len(source.hookpoints), source.d_model, dtype=torch.float64, device=source.device)
        self.counts = np.zeros(2, dtype=np.int64)
        for batch in rows.split(source.batch_rows):
            x_LBTD, special_BT = source.read_positions(batch.tolist())
            keep_CBT = counted(source, special_BT)
            for index, keep_BT in enumerate(keep_CBT):
                sum_CLD[index] += x_LBTD[:, keep_BT].sum(1, dtype=torch.float64)
            self.counts += keep_CBT.sum((1, 2)).cpu().numpy()
        if not self.counts[0]:
            raise nothing_left()
        counts_C = torch.as_tensor(self.counts, device=source.device).clamp_min(1)
        self.mean_CLD = sum_CLD / counts_C[:, None, None]
