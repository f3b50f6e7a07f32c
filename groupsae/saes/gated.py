"""The Gated SAE."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from groupsae.config import GatedConfig
from groupsae.saes.activation import Gate
from groupsae.saes.base import BatchStats, FiringStats, Latents, SparseAutoencoder, StepLosses
from groupsae.saes.kernels.pre_activations import PreActivations, pre_activations_above
from groupsae.saes.layer_maps import Bias
from groupsae.saes.sparsity import PenaltyWeight, start_threshold


@final
class GatedSAE(SparseAutoencoder):
    """A Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014).

        gate  = W_enc (z - b_dec) + b_enc                        which latents are active
        size  = exp(r_mag) * W_enc (z - b_dec) + b_mag           how strong they are
        f     = H(gate) * ReLU(size)                             z_hat = W_dec^T f + b_dec

        loss  = sum_t ||z_hat_t - z_t||^2 / V + warmup * lambda * mean_t sum_s ReLU(gate)_ts
                + sum_t ||W_dec^T ReLU(gate)_t + b_dec - z_t||^2 / V      V = sum_t ||z_t - mean z||^2

    In the last part, which gives the gate its gradient, W_dec and b_dec are held fixed. One product serves
    both paths, as they share W_enc; b_enc is the paper's b_gate. The L1 penalty shrinks the gate, not the
    sizes. lambda is steered towards L0 = k (`PenaltyWeight`) unless fixed.
    """

    def __init__(self, d_model: int, config: GatedConfig) -> None:
        super().__init__(d_model, config.width(d_model))
        self.config, self.penalty = config, PenaltyWeight(config.k, config.sparsity_coefficient)
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))

    def initialize(self, seed: int) -> None:
        """As every SAE; biases with which about k gates are open, and sizes without any."""
        super().initialize(seed)
        with torch.no_grad():
            self.b_enc.fill_(-start_threshold(self.d_model, self.d_sae, self.config.k))
            self.r_mag.zero_()
            self.b_mag.zero_()

    @torch.no_grad()
    def scale_biases(self, factor: Tensor | float) -> None:
        """As every SAE; b_mag too."""
        super().scale_biases(factor)
        self.b_mag *= factor

    def shift_products(self, shift_S: Tensor) -> None:
        """As every SAE; sizes see the shift in their own units."""
        super().shift_products(shift_S)
        with torch.no_grad():
            self.b_mag += self.r_mag.exp() * shift_S

    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """The latents whose gate is open, where their size is above zero."""
        gate = pre_activations_above(0.0, z_ND, self.W_enc, self.folded_bias())
        return gate.latents(self._sizes(gate))

    def activation(self) -> Gate:
        """exp(r_mag) (gate - b_enc) + b_mag where the gate, which is the pre-activation, is open."""
        scale_S = self.r_mag.detach().exp()
        return Gate(scale_S, self.b_mag.detach() - scale_S * self.b_enc.detach())

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
        gate = pre_activations_above(0.0, z_ND, self.W_enc, self.folded_bias(layer_bias))
        sizes, opened = self._sizes(gate), gate.values.relu()
        error = (z_ND - gate.decode(sizes, self.W_dec) - self.b_dec).square().sum()
        by_gate_ND = gate.decode(opened, self.W_dec.detach()) + self.b_dec.detach()
        gate_error, variance = (z_ND - by_gate_ND).square().sum(), whole.variance
        l1 = opened.sum() / whole.count
        total = (error + gate_error) / variance + sparsity * self.penalty.value * l1
        return StepLosses(total, error.detach(), variance, variance.new_zeros(()), gate.latents(sizes))

    def after_step(self, activity: FiringStats, rate: float) -> None:
        """Steers lambda."""
        self.penalty.update(activity.l0(), rate)

    def _sizes(self, gate: PreActivations) -> Tensor:
        linear = gate.values - gate.of(self.b_enc)
        sizes = gate.of(self.r_mag.exp()) * linear + gate.of(self.b_mag)
        return sizes.relu() * (gate.values > 0)
