"""How far one SAE's training has come, and when it ends: early, where its loss has stopped falling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from groupsae.config import TrainConfig


class Schedule:
    """Tokens seen, and the token at which training ends.

    With `stop_below`, the mean loss of each `stop_window_tokens` is compared with the mean before it.
    Where it fell by less than that share of itself per million tokens, the end is moved so that the decay
    of the learning rate begins now and takes its usual share of all tokens seen; without a decay
    training ends at once. Reading the loss is one synchronization per window, and none without `stop_below`.
    """

    def __init__(self, train: TrainConfig, device: torch.device) -> None:
        self.seen, self.end = 0, train.num_tokens
        self._train = train
        self._loss_and_steps = torch.zeros(2, dtype=torch.float64, device=device)
        self._tokens, self._before = 0, 0.0

    @property
    def finished(self) -> bool:
        """Whether training has ended."""
        return self.seen >= self.end

    @property
    def left(self) -> int:
        """Tokens still to be seen."""
        return max(0, self.end - self.seen)

    @property
    def progress(self) -> float:
        """The share of the tokens that has been seen."""
        return self.seen / self.end

    def advance(self, tokens: int, loss: Tensor) -> None:
        """Take note of a step on `tokens` tokens and its loss, a scalar that stays on the device.

        A loss that is not finite is that of a step that changed nothing, and counts for the tokens alone.
        """
        self.seen += tokens
        if self._train.stop_below is None or self._decaying:
            return
        self._loss_and_steps += torch.where(torch.isfinite(loss), torch.stack([loss, torch.ones_like(loss)]), 0)
        self._tokens += tokens
        if self._tokens >= self._train.stop_window_tokens:
            loss_sum, steps = self._loss_and_steps.tolist()
            self._compare(loss_sum / max(steps, 1))

    @property
    def _decaying(self) -> bool:
        return self.seen > self.end * (1 - self._train.decay_share)

    def _compare(self, mean: float) -> None:
        fallen = 1 - mean / self._before if self._before else math.inf
        if fallen / self._tokens * 1e6 < self._train.stop_below:
            self.end = min(self.end, math.ceil(self.seen / (1 - self._train.decay_share)))
        self._before, self._tokens = mean, 0
        self._loss_and_steps.zero_()

    def state(self) -> Tensor:
        """All of it as one tensor."""
        numbers = torch.tensor([self.seen, self.end, self._tokens, self._before], dtype=torch.float64)
        return torch.cat([numbers.to(self._loss_and_steps.device), self._loss_and_steps])

    def restore(self, state: Tensor) -> None:
        """Take the state that `state()` gave."""
        seen, end, tokens, self._before, *_ = state.tolist()
        self.seen, self.end, self._tokens = int(seen), int(end), int(tokens)
        self._loss_and_steps.copy_(state[-2:])
