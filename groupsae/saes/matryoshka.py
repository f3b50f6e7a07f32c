"""The Matryoshka BatchTopK SAE."""

from __future__ import annotations

from typing import final

from torch import Tensor

from groupsae.config import MatryoshkaConfig
from groupsae.saes.auxk import auxk_error
from groupsae.saes.base import Latents, Losses, SparseAutoencoder, Whole
from groupsae.saes.batch import BatchThreshold
from groupsae.saes.bias import Bias


@final
class MatryoshkaSAE(SparseAutoencoder):
    """A Matryoshka BatchTopK SAE (Bussmann et al. 2025, arXiv 2503.17547).

        f = as BatchTopK, over all latents      z_hat_m = sum_{s < S_m} f_s W_dec[s] + b_dec

        loss = sum_m sum_t ||z_hat_mt - z_t||^2 / V + auxk_weight * auxk / V      V = sum_t ||z_t - mean z||^2

    S_1 < ... < S_M = S are nested dictionaries (`prefixes`, as shares of S; by default 1/32, 3/32, 7/32, 15/32 and
    1: each stretch twice the one before, the last the rest). The first must make sense without the later ones, and
    so holds general latents. The auxiliary loss (`auxk_error`) is that of the whole dictionary, whose error and
    FVU are reported. Outside training as BatchTopK.
    """

    def __init__(self, d_model: int, config: MatryoshkaConfig) -> None:
        super().__init__(d_model, config.width(d_model))
        self.config, self.auxk_weight = config, config.auxk_weight
        self.sizes = config.sizes(self.d_sae)
        self.threshold = BatchThreshold(config.k)

    def change_inputs(self, factor: float, shift_D: Tensor) -> None:
        """As every SAE; the threshold is divided with the latents."""
        super().change_inputs(factor, shift_D)
        self.threshold.divide(factor)

    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """The latents above the threshold."""
        return self.threshold.above(z_ND, self.W_enc, self.folded_bias())

    def losses(
        self,
        z_ND: Tensor,
        dead_S: Tensor,
        sparsity: float = 1.0,
        whole: Whole | None = None,
        own: Bias | None = None,
    ) -> Losses:
        """The loss of the class docstring on a batch z (N, D); no penalty, so nothing to warm up."""
        whole = whole or Whole.of(z_ND)
        pre, values = self.threshold.strongest(z_ND, self.W_enc, self.folded_bias(own))
        e_MND = z_ND - pre.decode_nested(values, self.W_dec, self.sizes) - self.b_dec
        errors_M, variance = e_MND.square().sum((1, 2)), whole.variance
        auxk = auxk_error(self, z_ND, e_MND[-1], dead_S, own) / variance
        total = errors_M.sum() / variance + self.auxk_weight * auxk
        return Losses(total, errors_M[-1].detach(), variance, auxk.detach(), pre.latents(values))

    def after_step(self, latents: Latents, rate: float) -> None:
        """Brings the threshold up to date."""
        self.threshold.update(latents)
