"""What every SAE is: four weights, a way to encode sparsely, and a decoder of unit rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupsae.config import SAEConfig
from groupsae.records.types.lineage import Lineage
from groupsae.saes.activation import Activation
from groupsae.saes.layer_maps import Bias

ROWS_NUMBERS = 2**17
"""Numbers of a weight matrix that are worked on at once on a CPU: 512 KiB."""


@dataclass(frozen=True)
class Latents:
    """The active latents of N tokens: values (N, K) >= 0 and the latents' numbers (N, K).

    A value of zero is a latent that did not fire; its number then means nothing.
    """

    values_NK: Tensor
    indices_NK: Tensor

    def dense(self, d_sae: int) -> Tensor:
        """The same as one (N, S) tensor."""
        zeros_NS = self.values_NK.new_zeros(len(self.values_NK), d_sae)
        return zeros_NS.scatter_add(1, self.indices_NK, self.values_NK)

    def l0(self) -> Tensor:
        """Mean number of active latents per token, as a tensor."""
        return (self.values_NK > 0).sum() / max(1, len(self.values_NK))

    @torch.no_grad()
    def fired(self, d_sae: int) -> Tensor:
        """True for each latent (S,) that fired on some token; no synchronization with the device."""
        fired_S = torch.zeros(d_sae + 1, dtype=torch.bool, device=self.indices_NK.device)
        reached_NK = torch.where(self.values_NK > 0, self.indices_NK, d_sae)
        return fired_S.index_fill_(0, reached_NK.flatten(), True)[:d_sae]

    @torch.no_grad()
    def activity(self, d_sae: int) -> FiringStats:
        """What they amount to; no synchronization with the device."""
        values_NK, active_NK = self.values_NK, self.values_NK > 0
        none = values_NK.new_full((), torch.inf)  # filled on the device; `new_tensor` would be copied there
        cutoff = torch.where(active_NK, values_NK, none).amin() if values_NK.numel() else none
        return FiringStats(len(values_NK), active_NK.sum(), cutoff, self.fired(d_sae))


@dataclass(frozen=True)
class FiringStats:
    """What the latents of a batch amount to: its tokens, how many values are above zero, and the smallest of those.

    `cutoff` is infinite where nothing fired; `fired_S` is true for each latent (S,) that fired on some token.
    """

    tokens: int
    active: Tensor
    cutoff: Tensor
    fired_S: Tensor

    def __add__(self, other: FiringStats) -> FiringStats:
        """That of two parts of a batch together."""
        return FiringStats(
            self.tokens + other.tokens,
            self.active + other.active,
            torch.minimum(self.cutoff, other.cutoff),
            self.fired_S | other.fired_S,
        )

    def l0(self) -> Tensor:
        """Mean number of active latents per token, as a tensor."""
        return self.active / max(1, self.tokens)


@dataclass(frozen=True)
class BatchStats:
    """What losses of a part must know of the whole batch: its tokens, and V = sum_t ||z_t - mean z||^2.

    Of a batch without variance, such as one token, V is sum_t ||z_t||^2. `cutoff` is the pre-activation from which
    on latents are kept, where that is decided by the batch and not by each token.
    """

    count: int
    variance: Tensor
    cutoff: Tensor | None = None

    @classmethod
    def of(cls, z_ND: Tensor) -> BatchStats:
        """Those of a batch."""
        limits = torch.finfo(z_ND.dtype)
        variance, power = (torch.linalg.vector_norm(part).square() for part in (z_ND - z_ND.mean(0), z_ND))
        return cls(len(z_ND), torch.where(variance > limits.eps * power, variance, power).clamp_min(limits.tiny))


@dataclass(frozen=True)
class StepLosses:
    """What a batch cost, and what fired.

    `total` carries the gradient; `error` and `variance` (sums over the batch, of z in scaled
    units) give the FVU; `auxk` is the auxiliary part before its weight, zero where no latent
    is dead.
    """

    total: Tensor
    error: Tensor
    variance: Tensor
    auxk: Tensor
    latents: Latents


class SparseAutoencoder(nn.Module, ABC):
    """z_hat = W_dec^T latents + b_dec, with latents a sparse, non-negative function of z.

    Weights, all float32: W_enc (S, D), b_enc (S,), W_dec (S, D) with rows of unit norm, b_dec
    (D,). Inputs z (N, D) are centered and scaled already; `Suite` binds an SAE to a hookpoint's
    raw activations.
    """

    config: SAEConfig
    product_dtype: torch.dtype | None = None
    """Precision of the encoder's product; None is that of the weights."""

    def __init__(self, d_model: int, d_sae: int) -> None:
        super().__init__()
        self.d_model, self.d_sae = d_model, d_sae
        self.lineage: Lineage | None = None
        self.W_enc = nn.Parameter(torch.zeros(d_sae, d_model))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_model))
        self.b_dec = nn.Parameter(torch.zeros(d_model))

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Random unit decoder rows, the encoder their transpose, zero biases; decided by the seed alone."""
        random = torch.Generator().manual_seed(seed)
        rows_SD = F.normalize(torch.randn(self.d_sae, self.d_model, generator=random), dim=1)
        self.W_dec.copy_(rows_SD)
        self.W_enc.copy_(rows_SD)
        self.b_enc.zero_()
        self.b_dec.zero_()

    @abstractmethod
    def encode_sparse(self, z_ND: Tensor) -> Latents:
        """The active latents of each token."""

    @abstractmethod
    def activation(self) -> Activation:
        """Which latents pre-activations W_enc (z - b_dec) + b_enc become: `encode_sparse` as a formula."""

    @abstractmethod
    def losses(
        self,
        z_ND: Tensor,
        dead_S: Tensor,
        sparsity: float = 1.0,
        whole: BatchStats | None = None,
        layer_bias: Bias | None = None,
    ) -> StepLosses:
        """The training losses of a batch; `dead_S` marks the latents that count as dead.

        `sparsity` in [0, 1] is the warm-up of a sparsity penalty, where the architecture has one. Given
        the `whole` batch of which z is a part, it is that part's share of the whole batch's losses. `layer_bias`, the
        biases of the tokens' layers, is added to b_enc.
        """

    def whole(self, z_ND: Tensor, size: int, layer_bias: Bias | None = None) -> BatchStats:
        """What `losses` must know of a batch that is taken in parts of `size` tokens."""
        return BatchStats.of(z_ND)

    def after_step(self, activity: FiringStats, rate: float) -> None:
        """What a step on a batch changes besides the gradient's part, by what was active: thresholds, weights."""

    def encode(self, z_ND: Tensor) -> Tensor:
        """The latents (N, S), dense."""
        return self.encode_sparse(z_ND).dense(self.d_sae)

    def decode(self, latents_NS: Tensor) -> Tensor:
        """The reconstruction (N, D) of dense latents."""
        return latents_NS @ self.W_dec + self.b_dec

    def decode_sparse(self, latents: Latents) -> Tensor:
        """The reconstruction (N, D) of active latents."""
        return weighted_rows(self.W_dec, latents) + self.b_dec

    def forward(self, z_ND: Tensor) -> Tensor:
        """The reconstruction (N, D) of z."""
        return self.decode_sparse(self.encode_sparse(z_ND))

    def pre_activations(self, z_ND: Tensor) -> Tensor:
        """W_enc (z - b_dec) + b_enc, (N, S)."""
        return self.bias().linear(z_ND - self.b_dec, self.W_enc)

    def bias(self, layer_bias: Bias | None = None) -> Bias:
        """b_enc, and what tokens' layers have of their own: pre-activations are W_enc (z - b_dec) plus this."""
        return layer_bias.plus(self.b_enc) if layer_bias else Bias(self.b_enc)

    def folded_bias(self, layer_bias: Bias | None = None) -> Bias:
        """`bias` - W_enc b_dec: pre-activations are W_enc z plus this."""
        return self.bias(layer_bias).plus(-(self.W_enc @ self.b_dec))

    @torch.no_grad()
    def shift_products(self, shift_S: Tensor) -> None:
        """Do to W_enc (z - b_dec) from now on what was done to W_enc (z - b_dec) + shift until now."""
        self.b_enc += shift_S

    @torch.no_grad()
    def change_inputs(self, factor: float, shift_D: Tensor) -> None:
        """Do to y from now on what was done to z = factor * y + shift until now, in the units of y.

        The reconstruction of y becomes (z_hat - shift) / factor. Unit decoder rows stay as they are, so
        latents are divided by the factor, which must be above 0, and biases and thresholds with them.
        """
        self.scale_biases(1 / factor)
        self.b_dec.sub_(shift_D).div_(factor)

    @torch.no_grad()
    def scale_biases(self, factor: Tensor | float) -> None:
        """Multiply whatever is compared with or added to pre-activations: b_enc, in some architectures thresholds."""
        self.b_enc *= factor

    @torch.no_grad()
    def give_unit_rows(self) -> None:
        """Divide each decoder row by its norm and multiply its latent by it; only where each latent decides alone.

        SAEs that were trained here have unit rows already, those of other tools may not.
        """
        norm_S = torch.linalg.vector_norm(self.W_dec, dim=1)
        norm_S = torch.where(norm_S > 0, norm_S, 1.0)
        self.W_enc *= norm_S[:, None]
        self.W_dec /= norm_S[:, None]
        self.scale_biases(norm_S)

    @torch.no_grad()
    def fit_latents(self, z_ND: Tensor) -> None:
        """Multiply all latents, by the encoder, with the factor that reconstructs a batch z (N, D) best.

        <z - b_dec, y> / <y, y> with y = z_hat - b_dec, the least-squares solution. An encoder that is the decoder's
        transpose overshoots: k rows that all point to where z does add up to several times z. Nothing is changed
        where the factor is not a positive number, as on a batch that holds NaN.
        """
        none_S = torch.zeros(self.d_sae, dtype=torch.bool, device=z_ND.device)
        y_ND = weighted_rows(self.W_dec, self.losses(z_ND, none_S).latents)
        factor = ((z_ND - self.b_dec) * y_ND).sum() / y_ND.square().sum()
        factor = torch.where((factor > 0) & torch.isfinite(factor), factor, 1.0)
        self.W_enc *= factor
        self.scale_biases(factor)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Give every decoder row unit norm."""
        for W_RD in self.W_dec.split(self._rows_at_once):
            W_RD /= torch.linalg.vector_norm(W_RD, dim=1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Remove from each decoder row's gradient the component along the row."""
        if self.W_dec.grad is None:
            return
        for grad_RD, W_RD in zip(*(W.split(self._rows_at_once) for W in (self.W_dec.grad, self.W_dec)), strict=True):
            grad_RD.addcmul_(W_RD, (grad_RD * W_RD).sum(1, keepdim=True), value=-1)

    @property
    def _rows_at_once(self) -> int:
        """Rows that stay in a CPU's cache while they are worked on twice; elsewhere all."""
        return max(1, ROWS_NUMBERS // self.d_model) if self.W_dec.device.type == "cpu" else self.d_sae


def weighted_rows(W_SD: Tensor, latents: Latents) -> Tensor:
    """sum_k values[n, k] W[indices[n, k]], (N, D), touching only those rows."""
    return F.embedding_bag(latents.indices_NK, W_SD, per_sample_weights=latents.values_NK, mode="sum")
