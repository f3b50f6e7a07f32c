"""The BatchTopK SAE, and what Matryoshka SAEs share with it: the strongest latents of a batch, later a threshold."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from groupsae.config import BatchTopKConfig, MatryoshkaConfig
from groupsae.saes.activation import Threshold
from groupsae.saes.auxk import auxk_error
from groupsae.saes.base import BatchStats, FiringStats, Latents, SparseAutoencoder, StepLosses
from groupsae.saes.kernels.pre_activations import PreActivations, pre_activations_above
from groupsae.saes.layer_maps import Bias

MEMORY = 0.95
"""Of the mean of thresholds, per step. With SAELens' 0.99 it is that of a hundred steps ago, of larger latents."""
MARGIN = 0.7
"""Of a batch, what lies above this share of the threshold is listed: nearly always more than is kept."""


class BatchSAE(SparseAutoencoder):
    """An SAE whose latents are chosen by the batch in training, and by one threshold for all latents afterwards.

        pre = W_enc (z - b_dec) + b_enc      f = the N k largest of ReLU(pre) in a batch of N tokens, the rest zero

        loss = sum_m sum_t ||z_hat_mt - z_t||^2 / V + auxk_weight * auxk / V      V = sum_t ||z_t - mean z||^2

    over one or more reconstructions z_hat_m (`reconstruct`); `auxk_error` for dead latents is that of the last, as
    are the error and FVU that are reported. Outside training f = ReLU(pre) [pre > threshold] (`BatchThreshold`), so
    that a token's latents do not depend on its neighbors. A part of a batch keeps what is kept in the whole.
    """

    def __init__(self, d_model: int, config: BatchTopKConfig | MatryoshkaConfig) -> None:
        super().__init__(d_model, config.width(d_model))
        self.config, self.auxk_weight = config, config.auxk_weight
        self.threshold = BatchThreshold(config.k)

    @abstractmethod
    def reconstruct(self, pre: PreActivations, values: Tensor) -> Tensor:
        """What the latents, values >= 0 that go with `pre`, stand for without b_dec: (M, N, D), the whole one last."""

    def scale_biases(self, factor: Tensor | float) -> None:
        """As every SAE; the threshold too."""
        super().scale_biases(factor)
        self.threshold.scale(factor)

    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """The latents above the threshold."""
        return self.threshold.above(z_ND, self.W_enc, self.folded_bias())

    def activation(self) -> Threshold:
        """Those above the one threshold."""
        return Threshold(self.threshold.value.expand(self.d_sae))

    def whole(self, z_ND: Tensor, size: int, layer_bias: Bias | None = None) -> BatchStats:
        """As every SAE; of several parts also what they keep together, found in a pass of its own."""
        whole = super().whole(z_ND, size, layer_bias)
        if size >= len(z_ND):
            return whole
        return replace(whole, cutoff=self.threshold.cutoff(z_ND, self.W_enc, self.folded_bias(layer_bias), size))

    def losses(
        self,
        z_ND: Tensor,
        dead_S: Tensor,
        sparsity: float = 1.0,
        whole: BatchStats | None = None,
        layer_bias: Bias | None = None,
    ) -> StepLosses:
        """The loss of the class docstring on a batch z (N, D); no penalty, so nothing to warm up."""
        whole = whole or self.whole(z_ND, len(z_ND), layer_bias)
        pre, values = self.threshold.strongest(z_ND, self.W_enc, self.folded_bias(layer_bias), whole.cutoff)
        e_MND = z_ND - self.reconstruct(pre, values) - self.b_dec
        errors_M, variance = e_MND.square().sum((1, 2)), whole.variance
        auxk = auxk_error(self, z_ND, e_MND[-1], dead_S, layer_bias) / variance
        total = errors_M.sum() / variance + self.auxk_weight * auxk
        return StepLosses(total, errors_M[-1].detach(), variance, auxk.detach(), pre.latents(values))

    def after_step(self, activity: FiringStats, rate: float) -> None:
        """Brings the threshold up to date."""
        self.threshold.update(activity.cutoff)


class BatchThreshold(nn.Module):
    """Keeps the N k strongest latents of N tokens; afterwards, those above the mean of the cutoff kept.

        total <- m total + (1 - m) tau      weight <- m weight + (1 - m)      threshold = total / weight

    tau is a step's cutoff kept value, m = 0.95 (`MEMORY`). Divided by the weight, which starts at zero too, the
    mean is that of the steps so far, without bias from the first step on.
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

    def strongest(
        self, z_ND: Tensor, W_SD: Tensor, bias: Bias, cutoff: Tensor | None = None
    ) -> tuple[PreActivations, Tensor]:
        """Pre-activations of a batch, and their values with all but the N k largest, and the negative, set to zero.

        Of a part of a batch, those from the batch's `cutoff` on are kept. Exact wherever the floor lies: if the
        list turns out to hold fewer than N k, all are taken instead; and if even those are fewer, as some are not
        numbers, none is set to zero.
        """
        if cutoff is not None:
            pre = pre_activations_above(MARGIN * cutoff.relu(), z_ND, W_SD, bias)
            return pre, pre.values.relu() * (pre.values >= cutoff)
        wanted = self.k * len(z_ND)
        pre = pre_activations_above(MARGIN * self.value, z_ND, W_SD, bias, wanted)
        if pre.values.numel() < wanted:
            pre = pre_activations_above(-torch.inf, z_ND, W_SD, bias)
        surplus = pre.values.numel() - wanted
        if not wanted or surplus < 0:
            return pre, pre.values.relu()
        cutoff = pre.values.detach().flatten().kthvalue(surplus + 1).values
        return pre, pre.values.relu() * (pre.values >= cutoff)

    @torch.no_grad()
    def cutoff(self, z_ND: Tensor, W_SD: Tensor, bias: Bias, size: int) -> Tensor:
        """What the N k largest pre-activations of a batch are at least, found in parts of `size` tokens.

        It lies halfway between the last that is kept and the first that is not, so that rounding does not decide.
        -inf where no more than N k can be found.
        """
        wanted = self.k * len(z_ND)
        for floor in (MARGIN * self.value, -torch.inf):
            largest = z_ND.new_zeros(0)
            for z_PD, bias_P in zip(z_ND.split(size), bias.split(size), strict=False):
                pre = pre_activations_above(floor, z_PD, W_SD, bias_P, wanted + 1)
                largest = torch.cat([largest, pre.values.flatten()])
                largest = largest.topk(min(wanted + 1, len(largest))).values
            if len(largest) > wanted:
                return largest[wanted - 1 :].mean()
        return largest.new_tensor(-torch.inf)

    def above(self, z_ND: Tensor, W_SD: Tensor, bias: Bias) -> Latents:
        """The latents above the threshold: the rule outside training, where no batch decides."""
        pre = pre_activations_above(self.value, z_ND, W_SD, bias)
        return pre.latents(pre.values * (pre.values > self.value))

    @torch.no_grad()
    def scale(self, factor: Tensor | float) -> None:
        """Multiply the threshold, as when latents change their units."""
        self.total *= factor

    @torch.no_grad()
    def update(self, cutoff: Tensor) -> None:
        """Take note of a step's cutoff kept value; a step in which nothing fired, whose is infinite, says nothing."""
        seen = torch.isfinite(cutoff)
        self.total.copy_(torch.where(seen, MEMORY * self.total + (1 - MEMORY) * cutoff, self.total))
        self.weight.copy_(torch.where(seen, MEMORY * self.weight + (1 - MEMORY), self.weight))


@final
class BatchTopKSAE(BatchSAE):
    """A BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410): latents as `BatchSAE`, z_hat = W_dec^T f + b_dec."""

    def reconstruct(self, pre: PreActivations, values: Tensor) -> Tensor:
        """The one reconstruction, (1, N, D)."""
        return pre.decode(values, self.W_dec)[None]
