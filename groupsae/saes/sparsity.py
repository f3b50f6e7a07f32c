"""The weight of a sparsity penalty, steered towards a number of active latents."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor, nn

START, PACE, GAIN, MOST = 0.1, 5.0, 2.0, 0.5


class PenaltyWeight(nn.Module):
    """The weight lambda of a sparsity penalty: fixed, or steered so that L0, the active latents per token, is k.

        e_t = ln(L0_t / k)      i_t = i_(t-1) + 5 rate clip(e_t, -1/2, 1/2)      ln lambda_t = i_t + 2 clip(e_t, -1, 1)

    A proportional-integral controller in logarithms: i ends where the penalty balances the reconstruction at
    L0 = k, without an error that stays; the other term answers at once and damps. Weights move by about the
    learning rate per step, so i follows at a pace in proportion to it; its clip keeps the many active latents
    at the start from driving it too far. It sees nothing but the batches' L0, is deterministic, and its state
    lies in buffers, so that training resumes exactly.
    """

    def __init__(self, k: int, fixed: float | None) -> None:
        super().__init__()
        self.k, self.fixed = k, fixed
        self.register_buffer("integral", torch.tensor(math.log(START)))
        self.register_buffer("log_weight", self.integral.clone())

    @property
    def value(self) -> Tensor:
        """lambda for the next step."""
        return self.log_weight.exp() if self.fixed is None else self.log_weight.new_tensor(self.fixed)

    @torch.no_grad()
    def update(self, l0: Tensor, rate: float) -> None:
        """Take note of a batch's L0, after a step with this learning rate."""
        error = (l0 / self.k).log()
        self.integral += PACE * rate * error.clamp(-MOST, MOST)
        self.log_weight.copy_(self.integral + GAIN * error.clamp(-1, 1))


def start_threshold(d_model: int, d_sae: int, k: int) -> float:
    """What k of d_sae pre-activations exceed on average, were they normal with variance 1 / d_model."""
    share = min(0.5, k / d_sae)
    return NormalDist().inv_cdf(1 - share) / math.sqrt(d_model)
