"""What BatchTopK and Matryoshka SAEs share: the strongest latents of a batch, and a threshold that stands for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupsae.saes.base import Latents
from groupsae.saes.bias import Bias
from groupsae.saes.pre_activations import PreActivations, pre_activations_above

MARGIN = 0.7
"""Of a batch, what lies above this share of the threshold is listed: nearly always more than is kept."""


class BatchThreshold(nn.Module):
    """Keeps the N k strongest latents of N tokens; afterwards, those above the mean of the weakest kept.

        total <- 0.99 total + 0.01 tau      weight <- 0.99 weight + 0.01      threshold = total / weight

    tau is a step's weakest kept value. Divided by the weight, which starts at zero too, the mean is that of the
    steps so far, without bias from the first step on.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    @property
    def value(self) -> Tensor:
        """The threshold; zero before the first step."""
        return self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)

    def strongest(self, z_ND: Tensor, W_SD: Tensor, bias: Bias) -> tuple[PreActivations, Tensor]:
        """Pre-activations of a batch, and their values with all but the N k largest, and the negative, set to zero.

        Exact wherever the floor lies: if the list turns out to hold fewer than N k, all are taken instead; and
        if even those are fewer, as some are not numbers, none is set to zero.
        """
        wanted = self.k * len(z_ND)
        pre = pre_activations_above(MARGIN * self.value, z_ND, W_SD, bias, wanted)
        if pre.values.numel() < wanted:
            pre = pre_activations_above(-torch.inf, z_ND, W_SD, bias)
        surplus = pre.values.numel() - wanted
        if not wanted or surplus < 0:
            return pre, pre.values.relu()
        weakest = pre.values.detach().flatten().kthvalue(surplus + 1).values
        return pre, pre.values.relu() * (pre.values >= weakest)

    def above(self, z_ND: Tensor, W_SD: Tensor, bias: Bias) -> Latents:
        """The latents above the threshold: the rule outside training, where no batch decides."""
        pre = pre_activations_above(self.value, z_ND, W_SD, bias)
        return pre.latents(pre.values * (pre.values > self.value))

    @torch.no_grad()
    def divide(self, factor: float) -> None:
        """Divide the threshold, as when latents change their units."""
        self.total /= factor

    @torch.no_grad()
    def update(self, latents: Latents) -> None:
        """Take note of a step's weakest kept value; a step in which nothing fired says nothing."""
        fired_NK = latents.values_NK > 0
        weakest = latents.values_NK.masked_fill(~fired_NK, torch.inf).amin()
        seen = fired_NK.any()
        self.total.copy_(torch.where(seen, 0.99 * self.total + 0.01 * weakest, self.total))
        self.weight.copy_(torch.where(seen, 0.99 * self.weight + 0.01, self.weight))
