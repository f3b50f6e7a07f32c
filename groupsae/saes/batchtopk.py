"""The BatchTopK SAE."""

from __future__ import annotations

from typing import final

from torch import Tensor

from groupsae.config import BatchTopKConfig
from groupsae.saes.auxk import auxk_error
from groupsae.saes.base import Latents, Losses, SparseAutoencoder, Whole
from groupsae.saes.batch import BatchThreshold
from groupsae.saes.bias import Bias


@final
class BatchTopKSAE(SparseAutoencoder):
    """A BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410).

        pre = W_enc (z - b_dec) + b_enc      f = the N k largest of ReLU(pre) in a batch of N tokens, the rest zero
        z_hat = W_dec^T f + b_dec

        loss = sum_t ||z_hat_t - z_t||^2 / V + auxk_weight * auxk / V      V = sum_t ||z_t - mean z||^2

    with `auxk_error` for dead latents, as TopK. Outside training f = ReLU(pre) [pre > threshold], with one
    threshold for all latents (`BatchThreshold`), so that a token's latents do not depend on its neighbours.
    """

    def __init__(self, d_model: int, config: BatchTopKConfig) -> None:
        super().__init__(d_model, config.width(d_model))
        self.config, self.auxk_weight = config, config.auxk_weight
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
        e_ND = z_ND - pre.decode(values, self.W_dec) - self.b_dec
        error, variance = e_ND.square().sum(), whole.variance
        auxk = auxk_error(self, z_ND, e_ND, dead_S, own) / variance
        total = error / variance + self.auxk_weight * auxk
        return Losses(total, error.detach(), variance, auxk.detach(), pre.latents(values))

    def after_step(self, latents: Latents, rate: float) -> None:
        """Brings the threshold up to date."""
        self.threshold.update(latents)
