"""One hookpoint's SAE as plain weights in raw units: what other tools can hold.

Center, scale, gains and rotation are linear, and so go into the weights exactly; a layer's own encoder bias is in the
bound SAE already. What an absorber takes away before the encoder is linear too; what it carries past the SAE is not
the SAE's, and stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from groupsae.saes.activation import Activation
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.suite import BoundSAE


@dataclass(frozen=True)
class Absorber:
    """What is carried past an SAE: basis^T basis (x - mean), basis (R, D) with orthonormal rows, mean (D,) raw."""

    basis_RD: Tensor
    mean_D: Tensor

    def __call__(self, x_ND: Tensor) -> Tensor:
        """The part of raw activations (N, D) that is carried."""
        return (x_ND - self.mean_D) @ self.basis_RD.T @ self.basis_RD


@dataclass(frozen=True)
class Folded:
    """The plain weights, float64, of the SAE that serves one hookpoint.

        pre = W_enc (x - b_dec) + b_enc      f = activation(pre)      x_hat = W_dec^T f + b_dec (+ absorber(x))

    x and x_hat are raw activations. Pre-activations, latents and reconstruction are those of the bound SAE: latents
    keep their units, so that rows of W_dec have no unit norm but, without gains, that of one over the scale.
    """

    W_enc_SD: Tensor
    b_enc_S: Tensor
    W_dec_SD: Tensor
    b_dec_D: Tensor
    activation: Activation
    absorber: Absorber | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, bound: BoundSAE) -> Folded:
        """That of `suite[hookpoint]`: rows of W_enc go through s R diag(g), of W_dec through R diag(1 / g) / s."""
        sae, scale, center_D = bound.sae, bound.scale, bound.center_D.double()
        enter_DD, leave_DD = _maps(bound.adapter, bound.layer, sae.d_model, center_D.device)
        W_enc_SD = scale * sae.W_enc.double() @ enter_DD
        b_dec_D = sae.b_dec.double() @ leave_DD / scale + center_D
        b_enc_S = sae.b_enc.double()
        absorber = _absorber(bound)
        if absorber is not None:  # the encoder sees x - absorber(x)
            b_enc_S = b_enc_S - W_enc_SD @ absorber(b_dec_D)
            W_enc_SD = W_enc_SD - W_enc_SD @ absorber.basis_RD.T @ absorber.basis_RD
        W_dec_SD = sae.W_dec.double() @ leave_DD / scale
        return cls(W_enc_SD, b_enc_S, W_dec_SD, b_dec_D, sae.activation(), absorber)

    def pre_activations(self, x_ND: Tensor) -> Tensor:
        """The pre-activations (N, S) of raw activations (N, D)."""
        return (x_ND - self.b_dec_D) @ self.W_enc_SD.T + self.b_enc_S

    def encode(self, x_ND: Tensor) -> Tensor:
        """The latents (N, S)."""
        return self.activation(self.pre_activations(x_ND))

    def __call__(self, x_ND: Tensor) -> Tensor:
        """The reconstruction (N, D), with what is carried past the SAE."""
        decoded_ND = self.encode(x_ND) @ self.W_dec_SD + self.b_dec_D
        return decoded_ND if self.absorber is None else decoded_ND + self.absorber(x_ND)


def _maps(adapter: LayerMaps | None, layer: int, d_model: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """R diag(g) and R diag(1 / g), (D, D); the unit matrix for what the layer does without."""
    enter_DD = leave_DD = torch.eye(d_model, dtype=torch.float64, device=device)
    if adapter is not None and adapter.own.rotation:
        enter_DD = leave_DD = adapter.rotation_MDD[layer].double()
    if adapter is not None and adapter.own.affine:
        gain_D = adapter.gain_MD[layer].double()
        enter_DD, leave_DD = enter_DD * gain_D, leave_DD / gain_D
    return enter_DD, leave_DD


def _absorber(bound: BoundSAE) -> Absorber | None:
    """A (z - m) / s = A (x - (c + m / s)): a projection is of no unit, its mean is put into raw ones."""
    if bound.adapter is None or not bound.adapter.own.absorber:
        return None
    mean_D = bound.center_D.double() + bound.adapter.mean_MD[bound.layer].double() / bound.scale
    return Absorber(bound.adapter.basis_MRD[bound.layer].double(), mean_D)
