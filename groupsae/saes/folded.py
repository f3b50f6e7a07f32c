"""One hookpoint's SAE as plain weights in raw units: what other tools can hold.

Center, scale and rotation are linear, and so go into the weights exactly; a layer's own encoder bias is in the bound
SAE already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from groupsae.saes.activation import Activation

if TYPE_CHECKING:  # a suite makes bench objects, which are folded
    from groupsae.saes.suite import BoundSAE


@dataclass(frozen=True)
class Folded:
    """The plain weights, float64, of the SAE that serves one hookpoint.

        pre = W_enc (x - b_dec) + b_enc      f = activation(pre)      x_hat = W_dec^T f + b_dec

    x and x_hat are raw activations. Pre-activations, latents and reconstruction are those of the bound SAE: latents
    keep their units, so that the norm of W_dec's rows is not 1 but one over the scale.
    """

    W_enc_SD: Tensor
    b_enc_S: Tensor
    W_dec_SD: Tensor
    b_dec_D: Tensor
    activation: Activation

    @classmethod
    @torch.no_grad()
    def of(cls, bound: BoundSAE) -> Folded:
        """That of `suite[hookpoint]`: rows of W_enc are multiplied by s R, rows of W_dec by R / s."""
        sae, scale, center_D = bound.sae, bound.scale, bound.center_D.double()
        R_DD = torch.eye(sae.d_model, dtype=torch.float64, device=center_D.device)
        if bound.maps is not None and bound.maps.per_layer.rotation:
            R_DD = bound.maps.rotation_MDD[bound.layer].double()
        return cls(
            scale * sae.W_enc.double() @ R_DD,
            sae.b_enc.double(),
            sae.W_dec.double() @ R_DD / scale,
            sae.b_dec.double() @ R_DD / scale + center_D,
            sae.activation(),
        )

    def pre_activations(self, x_ND: Tensor) -> Tensor:
        """The pre-activations (N, S) of raw activations (N, D)."""
        return (x_ND - self.b_dec_D) @ self.W_enc_SD.T + self.b_enc_S

    def encode(self, x_ND: Tensor) -> Tensor:
        """The latents (N, S)."""
        return self.activation(self.pre_activations(x_ND))

    def __call__(self, x_ND: Tensor) -> Tensor:
        """The reconstruction (N, D)."""
        return self.encode(x_ND) @ self.W_dec_SD + self.b_dec_D
