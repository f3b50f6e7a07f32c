"""Rows of activations, sent from the ranks that read them to the ranks that train on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from groupsae.distributed.ranks import Ranks


def send_rows(ranks: Ranks, sent: Sequence[Tensor | None], into: Tensor | None, counts: Sequence[int]) -> None:
    """Send rows (n, D) of this rank to each other one, or none; fill `into` (N, D) with all ranks' rows in order.

    `counts` says how many rows each rank sends to those that want any. `into` must be contiguous.
    """
    like = next((rows for rows in (into, *sent) if rows is not None), None)
    if like is None:  # nobody sends to this rank, and it sends nothing, but it must take part
        like = torch.empty(0, 1)
    row_bytes = like.shape[1] * like.element_size()
    out = [rows.contiguous().view(torch.uint8).flatten() for rows in sent if rows is not None]
    sent_splits = [0 if rows is None else len(rows) * row_bytes for rows in sent]
    into_splits = [0 if into is None else count * row_bytes for count in counts]
    target = like.new_empty(0).view(torch.uint8) if into is None else into.view(torch.uint8).flatten()
    payload = torch.cat(out) if out else target.new_empty(0)
    ranks.all_to_all(target, payload, into_splits, sent_splits)
