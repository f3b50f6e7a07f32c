"""The Matryoshka BatchTopK SAE."""

from __future__ import annotations

from typing import final

from torch import Tensor

from groupsae.config import MatryoshkaConfig
from groupsae.saes.batchtopk import BatchSAE
from groupsae.saes.kernels.pre_activations import PreActivations


@final
class MatryoshkaSAE(BatchSAE):
    """A Matryoshka BatchTopK SAE (Bussmann et al. 2025, arXiv 2503.17547): latents as `BatchSAE`, over all of them.

        z_hat_m = sum_{s < S_m} f_s W_dec[s] + b_dec

    S_1 < ... < S_M = S are nested dictionaries (`prefixes`, as shares of S; by default 1/32, 3/32, 7/32, 15/32 and
    1: each stretch twice the one before, the last the rest). The first must make sense without the later ones, and
    so holds general latents. The auxiliary loss is that of the whole dictionary. With one prefix it is BatchTopK.
    """

    def __init__(self, d_model: int, config: MatryoshkaConfig) -> None:
        super().__init__(d_model, config)
        self.sizes = config.sizes(self.d_sae)

    def reconstruct(self, pre: PreActivations, values: Tensor) -> Tensor:
        """The reconstruction from each nested dictionary, (M, N, D)."""
        return pre.decode_nested(values, self.W_dec, self.sizes)
