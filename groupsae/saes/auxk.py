"""AuxK: dead latents learn to reconstruct what the live ones leave over."""

from __future__ import annotations

from torch import Tensor

from groupsae.saes.base import Latents, SparseAutoencoder, weighted_rows
from groupsae.saes.layer_maps import Bias


def auxk_error(
    sae: SparseAutoencoder, z_ND: Tensor, e_ND: Tensor, dead_S: Tensor, layer_bias: Bias | None = None
) -> Tensor:
    """min(n_dead / k_aux, 1) * sum_t ||e_hat_t - e_t||^2, zero where no latent is dead.

    e = z - z_hat, detached; e_hat is decoded without b_dec from the k_aux = D/2 strongest dead latents, taken
    before the ReLU, so that a latent whose pre-activation is negative is revived too (Gao et al. 2024,
    arXiv 2406.04093, appendix A.2).
    """
    dead, k_aux = dead_S.nonzero().squeeze(1), max(1, sae.d_model // 2)
    if not len(dead):
        return e_ND.new_zeros(())
    pre_NZ = sae.bias(layer_bias).at(dead).linear(z_ND - sae.b_dec, sae.W_enc[dead])
    values_NA, places_NA = pre_NZ.topk(min(k_aux, len(dead)), dim=1, sorted=False)
    e_hat_ND = _decode(sae.W_dec[dead], Latents(values_NA, places_NA), dense=e_ND.device.type != "cpu")
    return min(len(dead) / k_aux, 1.0) * (e_hat_ND - e_ND.detach()).square().sum()


def _decode(W_ZD: Tensor, latents: Latents, dense: bool) -> Tensor:
    """sum_a values[n, a] W[places[n, a]], (N, D).

    k_aux is at least a thirty-second of what can be dead at S = 16 D: by arithmetic too large a share for gathering
    to pay on a GPU, which has dense products instead (see `groupsae.saes.kernels.dense`).
    """
    return latents.dense(len(W_ZD)) @ W_ZD if dense else weighted_rows(W_ZD, latents)
