"""The BatchTopK SAE."""

from __future__ import annotations

from typing import final

from torch import Tensor

from groupsae.saes.batchtopk import BatchSAE
from groupsae.saes.kernels.pre_activations import PreActivations


@final
class BatchTopKSAE(BatchSAE):
    """A BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410): latents as `BatchSAE`, z_hat = W_dec^T f + b_dec."""

    def reconstruct(self, pre: PreActivations, values: Tensor) -> Tensor:
        """The one reconstruction, (1, N, D)."""
        return pre.decode(values, self.W_dec)[None]
