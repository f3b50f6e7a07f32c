"""Which positions of a forward pass count: not padding, not the first ones of a row, not some token ids."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from groupsae.errors import ModelError


@dataclass(frozen=True)
class Skip:
    """Positions without latents and edits: the first `first` of each row, and those of some token ids."""

    first: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class PassInputs:
    """What a forward pass of T positions was given, after `past` earlier ones.

    The mask is (B, past + T), nonzero at real tokens; or (B, 1, T, keys), true or zero where a position may attend.
    """

    ids_BT: Tensor | None
    mask: Tensor | None
    past: int

    @classmethod
    def of(cls, forward: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], read: int) -> PassInputs:
        """Those of the arguments of a Hugging Face model's `forward`, or of a plain module's.

        `read` is the number of positions that the passes before it have read.
        """
        named = _named(forward, args) | kwargs
        ids_BT = named.get("input_ids", args[0] if args else None)
        mask = named.get("attention_mask")
        if isinstance(mask, dict):  # one for each kind of attention
            mask = mask.get("full_attention", next(iter(mask.values()), None))
        return cls(
            ids_BT if isinstance(ids_BT, Tensor) and ids_BT.ndim == 2 else None,
            mask if isinstance(mask, Tensor) else None,
            _past(named, read),
        )

    @property
    def continues(self) -> bool:
        """Whether a cache of earlier positions was given."""
        return self.past > 0

    def kept(self, skip: Skip, rows: int, length: int, device: torch.device) -> Tensor:
        """True (B, T) at positions that count. Raises ModelError where ids are to be skipped that cannot be seen."""
        real_BT, place_BT = self._real(rows, length)
        kept_BT = (real_BT & (place_BT >= skip.first)).to(device)
        if skip.ids:
            if self.ids_BT is None or self.ids_BT.shape != kept_BT.shape:
                raise ModelError("skip_ids needs a model that is given token ids; this one was given something else.")
            kept_BT &= ~torch.isin(self.ids_BT.to(device), torch.tensor(skip.ids, device=device))
        return kept_BT

    def _real(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """True (B, T) at what is no padding, and each position's place in its text."""
        mask, end = self.mask, self.past + length
        if mask is not None and mask.shape == (rows, end):
            real_BP = mask != 0
            return real_BP[:, self.past :], (real_BP.cumsum(1) - 1)[:, self.past :]
        if mask is not None and mask.ndim == 4 and mask.shape[:3] == (rows, 1, length) and mask.shape[3] >= end:
            open_BTK = (mask if mask.dtype == torch.bool else mask == 0)[:, 0]
            return open_BTK.diagonal(self.past, 1, 2), open_BTK.sum(2) - 1
        real_BT = torch.ones(rows, length, dtype=torch.bool)
        return real_BT, (torch.arange(length) + self.past).expand(rows, length)


def _named(forward: Callable[..., Any], args: Sequence[Any]) -> dict[str, Any]:
    """Positional arguments by name."""
    names = [name for name, each in inspect.signature(forward).parameters.items() if each.kind <= each.KEYWORD_ONLY]
    return dict(zip(names, args, strict=False))


def _past(named: dict[str, Any], read: int) -> int:
    """How many positions the cache among the arguments holds; `read` for one that says only that it is not empty."""
    for value in named.values():
        if hasattr(value, "get_seq_length"):
            try:
                return int(value.get_seq_length())
            except ValueError:  # a cache of states, as in Mamba, has no length
                return read if value.has_previous_state() else 0
    position = named.get("cache_position")
    return int(position[0]) if isinstance(position, Tensor) and position.numel() else 0
