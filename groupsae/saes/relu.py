"""The ReLU SAE."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from groupsae.config import ReLUConfig
from groupsae.saes.activation import ReLU
from groupsae.saes.base import BatchStats, FiringStats, Latents, SparseAutoencoder, StepLosses
from groupsae.saes.kernels.pre_activations import pre_activations_above
from groupsae.saes.layer_maps import Bias
from groupsae.saes.sparsity import PenaltyWeight, start_threshold


@final
class ReLUSAE(SparseAutoencoder):
    """A ReLU SAE with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity").

        f = ReLU(W_enc (z - b_dec) + b_enc)      z_hat = W_dec^T f + b_dec

        loss = sum_t ||z_hat_t - z_t||^2 / V + warmup * lambda * mean_t sum_s f_ts      V = sum_t ||z_t - mean z||^2

    lambda is steered towards L0 = k (`PenaltyWeight`) unless fixed: in units of z, whose norm is about 1, no
    one value serves all models and layers. The transfer paper does not subtract b_dec before encoding; b_enc
    absorbs the difference, so that both describe the same SAEs. Its loss is mean_t ||z_hat_t - z_t||^2 +
    lambda' sum_s f: lambda' = lambda V / N.
    """

    def __init__(self, d_model: int, config: ReLUConfig) -> None:
        super().__init__(d_model, config.width(d_model))
        self.config, self.penalty = config, PenaltyWeight(config.k, config.sparsity_coefficient)

    def initialize(self, seed: int) -> None:
        """As every SAE; biases below which about k latents are active."""
        super().initialize(seed)
        with torch.no_grad():
            self.b_enc.fill_(-start_threshold(self.d_model, self.d_sae, self.config.k))

    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """The latents above zero."""
        pre = pre_activations_above(0.0, z_ND, self.W_enc, self.folded_bias())
        return pre.latents(pre.values.relu())

    def activation(self) -> ReLU:
        """Those above zero."""
        return ReLU()

    def losses(
        self,
        z_ND: Tensor,
        dead_S: Tensor,
        sparsity: float = 1.0,
        whole: BatchStats | None = None,
        layer_bias: Bias | None = None,
    ) -> StepLosses:
        """The loss of the class docstring on a batch z (N, D); nothing is done for dead latents."""
        whole = whole or BatchStats.of(z_ND)
        pre = pre_activations_above(0.0, z_ND, self.W_enc, self.folded_bias(layer_bias))
        values = pre.values.relu()
        error = (z_ND - pre.decode(values, self.W_dec) - self.b_dec).square().sum()
        variance, l1 = whole.variance, values.sum() / whole.count
        total = error / variance + sparsity * self.penalty.value * l1
        return StepLosses(total, error.detach(), variance, variance.new_zeros(()), pre.latents(values))

    def after_step(self, activity: FiringStats, rate: float) -> None:
        """Steers lambda."""
        self.penalty.update(activity.l0(), rate)
