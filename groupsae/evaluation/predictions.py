"""How a model's predictions change: next-token loss, and KL from the clean predictions."""

from __future__ import annotations

import torch
from torch import Tensor


class CleanPredictions:
    """Next-token loss and KL divergence from the clean predictions, per position.

    With y the logits, lse the log of their summed exponentials, c the clean ones and p = softmax(c):
    CE = lse(y) - y[next], KL(p || softmax(y)) = <p, c - y> + lse(y) - lse(c), differences of near numbers first.
    """

    def __init__(self, clean_BTV: Tensor, ids_BT: Tensor) -> None:
        self._next_BT = ids_BT[:, 1:, None]
        self._clean_BTV = clean_BTV.float()
        self._clean_lse_BT = self._clean_BTV.logsumexp(-1)
        self._p_BTV = self._clean_BTV.softmax(-1)

    def __call__(self, logits_BTV: Tensor) -> tuple[Tensor, Tensor]:
        """CE at every position that has a next token (B, T - 1), and KL at every position (B, T), in nats, float64."""
        y_BTV = logits_BTV.float()
        lse_BT = y_BTV.logsumexp(-1)
        ce_BT = lse_BT[:, :-1] - y_BTV[:, :-1].gather(-1, self._next_BT).squeeze(-1)
        moved_BT = torch.einsum("btv,btv->bt", self._p_BTV, self._clean_BTV - y_BTV)
        return ce_BT.double(), (moved_BT + lse_BT - self._clean_lse_BT).double()
