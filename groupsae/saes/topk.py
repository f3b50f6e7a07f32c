"""The TopK SAE."""

from __future__ import annotations

import copy
from functools import partial
from typing import final

import torch
from torch import Tensor

from groupsae.config import TopKConfig
from groupsae.errors import ConfigError
from groupsae.saes.activation import TopK
from groupsae.saes.auxk import auxk_error
from groupsae.saes.base import BatchStats, Latents, SparseAutoencoder, StepLosses
from groupsae.saes.kernels.gather import GatherKernel, select, squared_error, top_k
from groupsae.saes.kernels.nested import nested_errors
from groupsae.saes.kernels.sparse_grads import SparseGrads
from groupsae.saes.layer_maps import Bias


@final
class TopKSAE(SparseAutoencoder):
    """A TopK SAE (Gao et al. 2024, arXiv 2406.04093), as Group-SAE trains it.

        latents = top_k(ReLU(W_enc (z - b_dec) + b_enc))      z_hat = W_dec^T latents + b_dec

        loss  = sum_t ||z_hat_t - z_t||^2 / V + auxk_weight * auxk
        V     = sum_t ||z_t - mean z||^2
        auxk  = min(n_dead / k_aux, 1) * sum_t ||e_hat_t - e_t||^2 / V

    e = z - z_hat, detached; e_hat is decoded without b_dec from the k_aux = D/2 strongest dead
    latents, taken before the ReLU, so that a latent whose pre-activation is negative is revived
    too. Where fewer than k pre-activations are positive, fewer than k latents fire. A batch without
    variance (one token) has V = sum_t ||z_t||^2.

    With `nested_k` = k_1 < ... < k_M one SAE is trained for all of these (Balagansky et al. 2025, arXiv 2505.24473):

        loss = 1/M sum_m sum_t ||z_hat_m,t - z_t||^2 / V + auxk_weight * auxk

    where z_hat_m is the reconstruction from the k_m strongest latents. The auxiliary loss has e of the largest, and
    latents count as active among the largest; the error that is reported is that of `k`.
    """

    kernel: type[SparseGrads] = GatherKernel
    """How sums over active latents are computed in training; kernels differ in rounding only."""

    def __init__(self, d_model: int, config: TopKConfig) -> None:
        super().__init__(d_model, config.width(d_model))
        self.config, self.k, self.auxk_weight = config, config.k, config.auxk_weight
        self.nested = config.nested_k

    def at_k(self, k: int) -> TopKSAE:
        """This SAE with another number of active latents; weights are shared. Raises ConfigError if there are fewer."""
        if not 0 < k <= self.d_sae:
            raise ConfigError(f"k = {k} must be from 1 to {self.d_sae}, the number of latents.")
        sae = copy.copy(self)
        nested = self.nested if k in self.nested else ()
        sae.config = self.config.model_copy(update={"k": k, "nested_k": nested})
        sae.k, sae.nested = k, nested
        return sae

    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """The k strongest latents of each token."""
        return self._strongest(z_ND, self.bias(), self.k)

    def activation(self) -> TopK:
        """The k strongest of each token."""
        return TopK(self.k)

    def losses(
        self,
        z_ND: Tensor,
        dead_S: Tensor,
        sparsity: float = 1.0,
        whole: BatchStats | None = None,
        layer_bias: Bias | None = None,
    ) -> StepLosses:
        """The loss of the class docstring on a batch z (N, D); no penalty, so nothing to warm up."""
        variance = (whole or BatchStats.of(z_ND)).variance
        if self.nested:
            return self._nested_losses(z_ND, dead_S, variance, layer_bias)
        with torch.no_grad():
            latents = self._strongest(z_ND, self.bias(layer_bias), self.k)
        error, e_ND = squared_error(
            z_ND,
            latents.values_NK,
            latents.indices_NK,
            self.W_enc,
            self.bias(layer_bias),
            self.W_dec,
            self.b_dec,
            self.kernel,
            self.product_dtype,
        )
        auxk = auxk_error(self, z_ND, e_ND, dead_S, layer_bias) / variance
        return StepLosses(error / variance + self.auxk_weight * auxk, error.detach(), variance, auxk.detach(), latents)

    def _nested_losses(self, z_ND: Tensor, dead_S: Tensor, variance: Tensor, layer_bias: Bias | None) -> StepLosses:
        """The loss over all of `nested_k`."""
        bias = self.bias(layer_bias)
        with torch.no_grad():
            found = self._strongest(z_ND, bias, self.nested[-1])
            values_NK, order_NK = found.values_NK.sort(dim=1, descending=True, stable=True)
            latents = Latents(values_NK, found.indices_NK.gather(1, order_NK))
        weights = (self.W_enc, bias, self.W_dec, self.b_dec)
        error_M, e_ND = nested_errors(z_ND, latents.values_NK, latents.indices_NK, self.nested, *weights)
        auxk = auxk_error(self, z_ND, e_ND, dead_S, layer_bias) / variance
        error = error_M[self.nested.index(self.k)].detach()
        total = error_M.mean() / variance + self.auxk_weight * auxk
        return StepLosses(total, error, variance, auxk.detach(), latents)

    def _strongest(self, z_ND: Tensor, bias: Bias, k: int) -> Latents:
        choose = partial(top_k, k=k)
        values_NK, indices_NK = select(z_ND - self.b_dec, self.W_enc, bias, choose, self.product_dtype)
        return Latents(values_NK.relu(), indices_NK)
