"""Pieces of SAEs whose dictionary is cut over ranks: the same losses, with sums and choices over all pieces."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from groupsae.config import SAEConfig
from groupsae.errors import ConfigError
from groupsae.saes.activation import Activation
from groupsae.saes.base import BatchStats, FiringStats, Latents, SparseAutoencoder, StepLosses, weighted_rows
from groupsae.saes.batchtopk import MARGIN, BatchSAE
from groupsae.saes.jumprelu import Jump, JumpReLUSAE, Step
from groupsae.saes.kernels.gather import select, top_k
from groupsae.saes.kernels.pre_activations import PreActivations, pre_activations_above
from groupsae.saes.layer_maps import Bias
from groupsae.saes.matryoshka import MatryoshkaSAE
from groupsae.saes.registry import build_sae
from groupsae.saes.topk import TopKSAE
from groupsae.training.cut import CUT_TENSORS, Cut


def why_not_cut(config: SAEConfig) -> str:
    """Why a dictionary of this config cannot be cut over ranks; empty if it can."""
    if config.architecture == "relu":
        return "the penalty of relu is not divided among pieces"
    if config.architecture == "gated":
        return "the penalty and the second reconstruction of gated are not divided among pieces"
    if getattr(config, "nested_k", ()):
        return "the several reconstructions of nested_k are not divided among pieces"
    return ""


class CutSAE(SparseAutoencoder):
    """One rank's latents of an SAE. `d_sae` is their number; b_dec is the whole SAE's."""

    def __init__(self, whole: SparseAutoencoder, cut: Cut) -> None:
        super().__init__(whole.d_model, cut.size)
        self.cut = cut
        self.config, self.auxk_weight = whole.config, whole.config.auxk_weight
        for name, parameter in whole.named_parameters():
            if name in CUT_TENSORS:
                setattr(self, name, nn.Parameter(parameter.detach()[cut.own].clone()))
        self.b_dec = nn.Parameter(whole.b_dec.detach().clone())

    @abstractmethod
    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """This piece's latents among the active ones of each token."""

    def activation(self) -> Activation:
        """A piece has no rule of its own: which of its latents fire depends on the others."""
        raise TypeError("This is a piece of a dictionary; join it with the others first.")

    @torch.no_grad()
    def fit_latents(self, z_ND: Tensor) -> None:
        """As every SAE, by the reconstruction of all pieces together."""
        none_S = torch.zeros(self.d_sae, dtype=torch.bool, device=z_ND.device)
        y_ND = self.cut.summed(weighted_rows(self.W_dec, self.losses(z_ND, none_S).latents))
        factor = ((z_ND - self.b_dec) * y_ND).sum() / y_ND.square().sum()
        factor = torch.where((factor > 0) & torch.isfinite(factor), factor, 1.0)
        self.W_enc *= factor
        self.scale_biases(factor)

    def auxk(self, z_ND: Tensor, e_ND: Tensor, dead_S: Tensor, b_dec_D: Tensor) -> Tensor:
        """`auxk_error`, from the strongest dead latents of all pieces; `b_dec_D` is the encoder's, `Cut.copied`."""
        dead, k_aux = dead_S.nonzero().squeeze(1), max(1, self.d_model // 2)
        num_dead = self.cut.total(len(dead))
        if not num_dead:
            return e_ND.new_zeros(())
        pre_NZ = Bias(self.b_enc).at(dead).linear(z_ND - b_dec_D, self.W_enc[dead])
        values_NA, places_NA = pre_NZ.topk(min(k_aux, len(dead)), dim=1, sorted=False)
        values_NA, places_NA = _by_latent(values_NA, places_NA)
        kept_NA = self.cut.among_largest(values_NA, min(k_aux, num_dead))
        if len(dead):
            part_ND = weighted_rows(self.W_dec[dead], Latents(values_NA * kept_NA, places_NA))
        else:
            part_ND = torch.zeros_like(e_ND)
        e_hat_ND = self.cut.summed(part_ND)
        return min(num_dead / k_aux, 1.0) * (e_hat_ND - e_ND.detach()).square().sum()


@final
class CutTopKSAE(CutSAE):
    """A piece of a `TopKSAE`."""

    def __init__(self, whole: TopKSAE, cut: Cut) -> None:
        super().__init__(whole, cut)
        self.k = whole.k

    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """This piece's latents among the k strongest of each token."""
        return self._strongest(z_ND - self.b_dec)

    def losses(
        self,
        z_ND: Tensor,
        dead_S: Tensor,
        sparsity: float = 1.0,
        whole: BatchStats | None = None,
        layer_bias: Bias | None = None,
    ) -> StepLosses:
        """The loss of `TopKSAE` on a batch z (N, D), the same on every rank."""
        variance, b_dec_D = (whole or BatchStats.of(z_ND)).variance, self.cut.copied(self.b_dec)
        latents = self._strongest(z_ND - b_dec_D)
        e_ND = z_ND - self.cut.summed(weighted_rows(self.W_dec, latents)) - self.b_dec
        error = e_ND.square().sum()
        auxk = self.auxk(z_ND, e_ND, dead_S, b_dec_D) / variance
        total = error / variance + self.auxk_weight * auxk
        fired = Latents(latents.values_NK.detach(), latents.indices_NK)
        return StepLosses(total, error.detach(), variance, auxk.detach(), fired)

    def _strongest(self, centered_ND: Tensor) -> Latents:
        choose = partial(first_k, k=min(self.k, self.d_sae))
        values_NK, indices_NK = select(centered_ND, self.W_enc, Bias(self.b_enc), choose, self.product_dtype)
        values_NK, indices_NK = _by_latent(values_NK, indices_NK)
        return Latents(values_NK.relu() * self.cut.among_largest(values_NK, self.k), indices_NK)


@final
class CutBatchSAE(CutSAE):
    """A piece of a `BatchTopKSAE` or `MatryoshkaSAE`."""

    def __init__(self, whole: BatchSAE, cut: Cut) -> None:
        super().__init__(whole, cut)
        self.threshold = whole.threshold
        sizes = whole.sizes if isinstance(whole, MatryoshkaSAE) else (whole.d_sae,)
        self.sizes = tuple(min(max(size - cut.own.start, 0), cut.size) for size in sizes)
        """How many of this piece's latents each nested dictionary holds."""

    @torch.no_grad()
    def scale_biases(self, factor: Tensor | float) -> None:
        """As every SAE; the threshold too."""
        super().scale_biases(factor)
        self.threshold.scale(factor)

    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """This piece's latents above the threshold."""
        return self.threshold.above(z_ND, self.W_enc, self.folded_bias())

    def whole(self, z_ND: Tensor, size: int, layer_bias: Bias | None = None) -> BatchStats:
        """As every SAE; also the cutoff of the N k strongest of all pieces."""
        wanted = self.threshold.k * len(z_ND)
        with torch.no_grad():
            bias = self.folded_bias(layer_bias)
            pre = pre_activations_above(MARGIN * self.threshold.value, z_ND, self.W_enc, bias, wanted + 1)
            if self.cut.total(pre.values.numel()) <= wanted:
                pre = pre_activations_above(-torch.inf, z_ND, self.W_enc, bias, wanted + 1)
            return replace(super().whole(z_ND, size), cutoff=self.cut.cutoff(pre.values, wanted))

    def losses(
        self,
        z_ND: Tensor,
        dead_S: Tensor,
        sparsity: float = 1.0,
        whole: BatchStats | None = None,
        layer_bias: Bias | None = None,
    ) -> StepLosses:
        """The loss of `BatchSAE` on a batch z (N, D), the same on every rank."""
        whole, b_dec_D = whole or self.whole(z_ND, len(z_ND)), self.cut.copied(self.b_dec)
        bias = Bias(self.b_enc - self.W_enc @ b_dec_D)
        pre, values = self.threshold.strongest(z_ND, self.W_enc, bias, whole.cutoff)
        parts_MND = pre.decode_nested(values, self.W_dec, self.sizes)
        e_MND = z_ND - self.cut.summed(parts_MND) - self.b_dec
        errors_M, variance = e_MND.square().sum((1, 2)), whole.variance
        auxk = self.auxk(z_ND, e_MND[-1], dead_S, b_dec_D) / variance
        total = errors_M.sum() / variance + self.auxk_weight * auxk
        return StepLosses(total, errors_M[-1].detach(), variance, auxk.detach(), pre.latents(values))

    def after_step(self, activity: FiringStats, rate: float) -> None:
        """Brings the threshold up to date."""
        self.threshold.update(activity.cutoff)


@final
class CutJumpReLUSAE(CutSAE):
    """A piece of a `JumpReLUSAE`."""

    def __init__(self, whole: JumpReLUSAE, cut: Cut) -> None:
        super().__init__(whole, cut)
        self.penalty, self.bandwidth = whole.penalty, whole.bandwidth

    @torch.no_grad()
    def scale_biases(self, factor: Tensor | float) -> None:
        """As every SAE; thresholds too."""
        super().scale_biases(factor)
        self.log_threshold += torch.as_tensor(factor).log()

    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """This piece's latents above their thresholds."""
        pre, values, theta = self._pre_activations(z_ND, 0.0, self.b_dec)
        return pre.latents(values * (values > theta))

    def losses(
        self,
        z_ND: Tensor,
        dead_S: Tensor,
        sparsity: float = 1.0,
        whole: BatchStats | None = None,
        layer_bias: Bias | None = None,
    ) -> StepLosses:
        """The loss of `JumpReLUSAE` on a batch z (N, D), the same on every rank."""
        whole, b_dec_D = whole or BatchStats.of(z_ND), self.cut.copied(self.b_dec)
        pre, values, _ = self._pre_activations(z_ND, -self.bandwidth / 2, b_dec_D)
        theta = pre.of(self.log_threshold.exp()).expand_as(values)
        active = Step.apply(values, theta, self.bandwidth)
        latents = Jump.apply(values, theta, self.bandwidth)
        e_ND = z_ND - self.cut.summed(pre.decode(latents, self.W_dec)) - self.b_dec
        error, variance, l0 = e_ND.square().sum(), whole.variance, self.cut.summed(active.sum()) / whole.count
        auxk = self.auxk(z_ND, e_ND, dead_S, b_dec_D) / variance
        total = error / variance + sparsity * self.penalty.value * l0 / self.config.k + self.auxk_weight * auxk
        return StepLosses(total, error.detach(), variance, auxk.detach(), pre.latents(latents))

    def after_step(self, activity: FiringStats, rate: float) -> None:
        """Steers lambda."""
        self.penalty.update(activity.l0(), rate)

    def _pre_activations(self, z_ND: Tensor, margin: float, b_dec_D: Tensor) -> tuple[PreActivations, Tensor, Tensor]:
        theta_S = self.log_threshold.detach().exp()
        bias = Bias(self.b_enc - self.W_enc @ b_dec_D - theta_S)
        pre = pre_activations_above(margin, z_ND, self.W_enc, bias)
        return pre, pre.values + pre.of(theta_S), pre.of(theta_S)


def cut_sae(whole: SparseAutoencoder, cut: Cut) -> CutSAE:
    """This rank's piece of an SAE. Raises ConfigError for an SAE that cannot be cut, with the reason."""
    why = why_not_cut(whole.config)
    if why:
        raise ConfigError(f"An SAE of this kind cannot be cut over ranks: {why}. Use at most one rank per group.")
    kinds = {TopKSAE: CutTopKSAE, BatchSAE: CutBatchSAE, JumpReLUSAE: CutJumpReLUSAE}
    kind = next(piece for architecture, piece in kinds.items() if isinstance(whole, architecture))
    return kind(whole, cut)


def joined_sae(piece: CutSAE) -> SparseAutoencoder:
    """The whole SAE, on the device of the piece; every rank that has a piece must call it."""
    sae = build_sae(piece.d_model, piece.config)
    sae.load_state_dict(piece.cut.joined(piece.state_dict()))
    return sae.to(piece.W_dec.device)


def first_k(x_NS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest numbers of each row and where they stand; of equal ones those that stand first."""
    values_NK, indices_NK = top_k(x_NS, k)
    tied_N = (x_NS >= values_NK.amin(1, keepdim=True)).sum(1) > k
    if tied_N.any():
        order = x_NS[tied_N].sort(dim=1, descending=True, stable=True)
        values_NK[tied_N], indices_NK[tied_N] = order.values[:, :k], order.indices[:, :k]
    return values_NK, indices_NK


def _by_latent(values_NK: Tensor, indices_NK: Tensor) -> tuple[Tensor, Tensor]:
    """The same candidates in the order of their latents."""
    indices_NK, order_NK = indices_NK.sort(dim=1)
    return values_NK.gather(1, order_NK), indices_NK
