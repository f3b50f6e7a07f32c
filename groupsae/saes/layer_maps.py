"""What a layer has of its own inside a group, besides its center and scale.

The SAE of a group sees z' and gives z'_hat; each layer l of the group enters and leaves by maps of its own:

    z' = R_l (g_l * (z - A_l (z - m_l)))        z_hat = R_l^T z'_hat / g_l + A_l (z - m_l)
    pre-activations = W_enc (z' - b_dec) + b_enc + beta_l

- affine: gains g_l (D,) give every dimension of every layer the spread it has in the group (geometric mean of layers)
- rotation: R_l (D, D) orthogonal, layer l onto the group's middle layer (Procrustes)
- absorber:R: A_l the projection onto the R directions of largest variance around the mean m_l, carried past the SAE
  (a dense bottleneck, as in arXiv 2606.14040 but in closed form)
- bias: beta_l (S,), learned with the SAE by the same optimizer, zero at first
Gains, rotations and biases fold exactly into the weights of a layer's own SAE; an absorber stands beside it. A group
of one layer has nothing to gain but from an absorber: its gains are 1, its rotation is none, and it has no bias.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from groupsae.saes.scales import Scales
from groupsae.activations.source import ActivationSource, stream
from groupsae.config import PerLayer
from groupsae.partition import Group
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.layer_maps import Bias


class LayerMaps(nn.Module):
    """The maps of the M layers of one group; what a group does without is of size zero.

    Buffers: gain (M, D), rotation (M, D, D), basis (M, R, D) with orthonormal rows, mean (M, D), and the share of the
    variance that the basis carries, absorbed (M,). Parameter: bias (M, S), None where layers have none.
    """

    gain_MD: Tensor
    rotation_MDD: Tensor
    basis_MRD: Tensor
    mean_MD: Tensor
    absorbed_M: Tensor
    bias_MS: Tensor | None

    def __init__(self, layers: int, d_model: int, own: PerLayer, d_sae: int = 0) -> None:
        super().__init__()
        self.own = own
        self.register_buffer("gain_MD", torch.ones(layers * own.affine, d_model))
        self.register_buffer("rotation_MDD", torch.eye(d_model).repeat(layers * own.rotation, 1, 1))
        self.register_buffer("basis_MRD", torch.zeros(layers, min(own.absorber, d_model), d_model))
        self.register_buffer("mean_MD", torch.zeros(layers, d_model))
        self.register_buffer("absorbed_M", torch.zeros(layers))
        biased = own.bias and layers > 1
        self.register_parameter("bias_MS", nn.Parameter(torch.zeros(layers, d_sae)) if biased else None)

    def enter(self, z_ND: Tensor, layers_N: Tensor) -> Tensor:
        """z' of tokens of these layers."""
        return self._each_layer(z_ND, layers_N, self._enter)

    def bias(self, layers_N: Tensor) -> Bias | None:
        """What is added to the pre-activations of tokens of these layers; None for nothing."""
        return None if self.bias_MS is None else Bias(self.bias_MS, layers_N)

    def leave(self, z_hat_ND: Tensor, layer: int) -> Tensor:
        """The SAE's part of z_hat from z'_hat, of tokens of one layer."""
        if self.own.rotation:
            z_hat_ND = z_hat_ND @ self.rotation_MDD[layer]
        return z_hat_ND / self.gain_MD[layer] if self.own.affine else z_hat_ND

    def absorbed(self, z_ND: Tensor, layer: int) -> Tensor:
        """The part A (z - m) of tokens z of one layer that is carried past the SAE."""
        basis_RD = self.basis_MRD[layer]
        return ((z_ND - self.mean_MD[layer]) @ basis_RD.T) @ basis_RD

    def with_bias(self, sae: SparseAutoencoder, layer: int) -> SparseAutoencoder:
        """The SAE with the layer's own bias in it, so that it needs none beside it; both weight matrices are shared."""
        if self.bias_MS is None:
            return sae
        own = copy.deepcopy(sae, {id(weight): weight for weight in (sae.W_enc, sae.W_dec)})
        own.shift_products(self.bias_MS[layer].detach())
        return own

    @torch.no_grad()
    def fold_rotation(self, sae: SparseAutoencoder, layer: int) -> None:
        """Turn an SAE of z' into one of z that does the same at this layer; gains, absorbers, biases are left aside."""
        if self.own.rotation:
            R_DD = self.rotation_MDD[layer]
            for weight in (sae.W_enc, sae.W_dec, sae.b_dec):
                weight.copy_(weight @ R_DD)

    def _enter(self, z_ND: Tensor, layer: int) -> Tensor:
        if self.own.absorber:
            z_ND = z_ND - self.absorbed(z_ND, layer)
        if self.own.affine:
            z_ND = z_ND * self.gain_MD[layer]
        return z_ND @ self.rotation_MDD[layer].T if self.own.rotation else z_ND

    def _each_layer(self, z_ND: Tensor, layers_N: Tensor, map_one: Callable[[Tensor, int], Tensor]) -> Tensor:
        if not self.own.measured:
            return z_ND
        if len(self.mean_MD) == 1:
            return map_one(z_ND, 0)
        mapped_ND = torch.empty_like(z_ND)
        for layer in range(len(self.mean_MD)):
            of_layer = (layers_N == layer).nonzero().squeeze(1)
            mapped_ND[of_layer] = map_one(z_ND[of_layer], layer)
        return mapped_ND


def fit_layer_maps(
    source: ActivationSource,
    groups: Sequence[Group],
    scales: Scales,
    own: PerLayer,
    num_tokens: int,
    *,
    d_sae: int = 0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[Group, LayerMaps]:
    """The adapters of groups, all maps in closed form from `num_tokens` tokens in one pass; sums are float64.

    Biases, of `d_sae` latents, are zero, to be learned; with nothing else nothing is read. None where layers have
    nothing of their own.
    """
    if not own.any:
        return {}
    adapters = {group: LayerMaps(len(group), source.d_model, own, d_sae).to(source.device) for group in groups}
    if not own.measured:
        return adapters
    moments = {group: _Moments(len(group), source.d_model, source.device) for group in groups}
    layers = {group: [source.hookpoints.index(name) for name in group] for group in groups}
    for x_LND in stream(source, num_tokens, seed):
        for group, sums in moments.items():
            at = scales.at(group)
            sums.add((x_LND[layers[group]].float() - at.center_LD[:, None]) * at.scale_L[:, None, None])
        if progress:
            progress(x_LND.shape[1])
    for group, sums in moments.items():
        sums.fit(adapters[group])
    return adapters


class _Moments:
    """Sums over tokens: of z at each layer, of z z^T, and of z z^T with the group's middle layer."""

    def __init__(self, layers: int, d_model: int, device: torch.device) -> None:
        square = (layers, d_model, d_model)
        self.count, self.middle = 0, layers // 2
        self.sum_MD = torch.zeros(layers, d_model, dtype=torch.float64, device=device)
        self.own_MDD = torch.zeros(square, dtype=torch.float64, device=device)
        self.across_MDD = torch.zeros(square, dtype=torch.float64, device=device)

    def add(self, z_MND: Tensor) -> None:
        z_MND = z_MND.double()
        self.count += z_MND.shape[1]
        self.sum_MD += z_MND.sum(1)
        self.own_MDD += z_MND.mT @ z_MND
        self.across_MDD += z_MND[self.middle].T @ z_MND

    def fit(self, adapter: LayerMaps) -> None:
        (layers, d_model), own = self.sum_MD.shape, adapter.own
        mean_MD = self.sum_MD / self.count
        cov_MDD = self.own_MDD / self.count - mean_MD[:, :, None] * mean_MD[:, None]
        kept_MDD = torch.eye(d_model, dtype=torch.float64, device=mean_MD.device).repeat(layers, 1, 1)
        adapter.mean_MD.copy_(mean_MD)
        if own.absorber:
            basis_MRD = torch.linalg.eigh(cov_MDD).eigenvectors.flip(-1)[:, :, : adapter.basis_MRD.shape[1]].mT
            absorbed_MDD = basis_MRD.mT @ basis_MRD
            adapter.basis_MRD.copy_(basis_MRD)
            adapter.absorbed_M.copy_(_trace(absorbed_MDD @ cov_MDD) / _trace(cov_MDD))
            kept_MDD = kept_MDD - absorbed_MDD
        if own.affine:
            spread_MD = _diagonal(kept_MDD @ cov_MDD @ kept_MDD).clamp_min(1e-12).sqrt()
            gain_MD = spread_MD.log().mean(0).exp() / spread_MD
            adapter.gain_MD.copy_(gain_MD)
        if own.rotation:
            u_MDD, _, vh_MDD = torch.linalg.svd(self._entered(adapter, kept_MDD, mean_MD))
            adapter.rotation_MDD.copy_(u_MDD @ vh_MDD)

    def _entered(self, adapter: LayerMaps, kept_MDD: Tensor, mean_MD: Tensor) -> Tensor:
        """E[y_middle y_l^T] of y = g * (z - A (z - m)), the input of the rotations: y = T z + t."""
        gain_MD = adapter.gain_MD.double() if adapter.own.affine else torch.ones_like(mean_MD)
        T_MDD = gain_MD[:, :, None] * kept_MDD
        t_MD = gain_MD * mean_MD - (T_MDD @ mean_MD[:, :, None]).squeeze(2)
        T_DD, t_D, mean_D = T_MDD[self.middle], t_MD[self.middle], mean_MD[self.middle]
        product = T_DD @ (self.across_MDD / self.count) @ T_MDD.mT
        means = (T_DD @ mean_D)[:, None] * t_MD[:, None] + t_D[:, None] * (T_MDD @ mean_MD[:, :, None]).mT
        return product + means + t_D[:, None] * t_MD[:, None]


def _trace(matrices_MDD: Tensor) -> Tensor:
    return _diagonal(matrices_MDD).sum(1)


def _diagonal(matrices_MDD: Tensor) -> Tensor:
    return matrices_MDD.diagonal(dim1=1, dim2=2)
