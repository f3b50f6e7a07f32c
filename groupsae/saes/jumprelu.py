"""The JumpReLU SAE."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import Function

from groupsae.config import JumpReLUConfig
from groupsae.saes.activation import Threshold
from groupsae.saes.auxk import auxk_error
from groupsae.saes.base import BatchStats, FiringStats, Latents, SparseAutoencoder, StepLosses
from groupsae.saes.kernels.pre_activations import PreActivations, pre_activations_above
from groupsae.saes.layer_maps import Bias
from groupsae.saes.sparsity import PenaltyWeight, start_threshold


@final
class JumpReLUSAE(SparseAutoencoder):
    """A JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435).

        pre = W_enc (z - b_dec) + b_enc      f = pre * H(pre - theta)      z_hat = W_dec^T f + b_dec

        loss = sum_t ||z_hat_t - z_t||^2 / V + warmup * lambda * mean_t L0_t / k + auxk_weight * auxk / V
        V    = sum_t ||z_t - mean z||^2

    H is the step function, L0 = sum_s H(pre_s - theta_s), theta = exp(log_threshold) > 0 one per latent. Both
    jumps have the paper's straight-through gradients, with a window of width eps (`bandwidth`) around theta:

        df/dtheta = -(theta / eps) [|pre - theta| < eps / 2]      dH/dtheta = -(1 / eps) [|pre - theta| < eps / 2]
        df/dpre   = H(pre - theta)                                dH/dpre   = 0

    lambda is steered towards L0 = k (`PenaltyWeight`) unless fixed. eps follows from the size of an active
    latent, about 1 / sqrt(k), as z has norm 1 on average (the paper's 0.001 is for z of another norm and for
    budgets a thousand times ours). The paper leaves dead latents alone; outside its window a threshold gets no
    gradient, and with a small budget up to a quarter of all latents stayed dead: hence AuxK (`auxk_error`).
    """

    def __init__(self, d_model: int, config: JumpReLUConfig) -> None:
        super().__init__(d_model, config.width(d_model))
        self.config, self.penalty = config, PenaltyWeight(config.k, config.sparsity_coefficient)
        self.auxk_weight = config.auxk_weight
        self.bandwidth = config.bandwidth or 0.5 / math.sqrt(config.k)
        self.log_threshold = nn.Parameter(torch.zeros(self.d_sae))

    @property
    def threshold(self) -> Tensor:
        """theta, (S,)."""
        return self.log_threshold.exp()

    def initialize(self, seed: int) -> None:
        """As every SAE; low thresholds, as too many active latents are lost sooner than dead ones come back."""
        super().initialize(seed)
        with torch.no_grad():
            self.log_threshold.fill_(math.log(start_threshold(self.d_model, self.d_sae, self.config.k) / 3))

    @torch.no_grad()
    def scale_biases(self, factor: Tensor | float) -> None:
        """As every SAE; thresholds too."""
        super().scale_biases(factor)
        self.log_threshold += torch.as_tensor(factor).log()

    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """The latents above their thresholds."""
        pre, values, theta = self._pre_activations(z_ND, 0.0)
        return pre.latents(values * (values > theta))

    def activation(self) -> Threshold:
        """Those above their thresholds."""
        return Threshold(self.threshold.detach())

    def losses(
        self,
        z_ND: Tensor,
        dead_S: Tensor,
        sparsity: float = 1.0,
        whole: BatchStats | None = None,
        layer_bias: Bias | None = None,
    ) -> StepLosses:
        """The loss of the class docstring on a batch z (N, D)."""
        whole = whole or BatchStats.of(z_ND)
        pre, values, _ = self._pre_activations(z_ND, -self.bandwidth / 2, layer_bias)
        theta = pre.of(self.threshold).expand_as(values)
        active = Step.apply(values, theta, self.bandwidth)
        latents = Jump.apply(values, theta, self.bandwidth)
        e_ND = z_ND - pre.decode(latents, self.W_dec) - self.b_dec
        error, variance, l0 = e_ND.square().sum(), whole.variance, active.sum() / whole.count
        auxk = auxk_error(self, z_ND, e_ND, dead_S, layer_bias) / variance
        total = error / variance + sparsity * self.penalty.value * l0 / self.config.k + self.auxk_weight * auxk
        return StepLosses(total, error.detach(), variance, auxk.detach(), pre.latents(latents))

    def after_step(self, activity: FiringStats, rate: float) -> None:
        """Steers lambda."""
        self.penalty.update(activity.l0(), rate)

    def _pre_activations(
        self, z_ND: Tensor, margin: float, layer_bias: Bias | None = None
    ) -> tuple[PreActivations, Tensor, Tensor]:
        """Those above theta + margin, their values, and theta for each: found as above a floor common to all."""
        theta_S = self.threshold.detach()
        pre = pre_activations_above(margin, z_ND, self.W_enc, self.folded_bias(layer_bias).plus(-theta_S))
        return pre, pre.values + pre.of(theta_S), pre.of(theta_S)


class Step(Function):
    """H(pre - theta), with the straight-through gradient for theta."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pre, theta = ctx.saved_tensors
        inside = (pre - theta).abs() < ctx.bandwidth / 2
        return None, -grad * inside / ctx.bandwidth, None


class Jump(Function):
    """pre H(pre - theta), with the straight-through gradient for theta."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pre, theta = ctx.saved_tensors
        inside = (pre - theta).abs() < ctx.bandwidth / 2
        return grad * (pre > theta), -grad * theta * inside / ctx.bandwidth, None
