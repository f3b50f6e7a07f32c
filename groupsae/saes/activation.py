"""Which latents pre-activations become: the rules of all architectures outside training, each a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopK:
    """The k largest of each token that are above zero: TopK."""

    k: int

    def __call__(self, pre_NS: Tensor) -> Tensor:
        """The latents (N, S)."""
        values_NK, indices_NK = pre_NS.topk(self.k, dim=1)
        return torch.zeros_like(pre_NS).scatter(1, indices_NK, values_NK.relu())


@dataclass(frozen=True)
class Threshold:
    """Those above a threshold >= 0 per latent (S,): JumpReLU, and BatchTopK and Matryoshka, whose are all equal."""

    threshold_S: Tensor

    def __call__(self, pre_NS: Tensor) -> Tensor:
        """The latents (N, S)."""
        return pre_NS * (pre_NS > self.threshold_S)


@dataclass(frozen=True)
class ReLU:
    """Those above zero."""

    def __call__(self, pre_NS: Tensor) -> Tensor:
        """The latents (N, S)."""
        return pre_NS.relu()


@dataclass(frozen=True)
class Gate:
    """ReLU(scale * pre + offset) where pre is above zero, with a scale and an offset per latent (S,): Gated."""

    scale_S: Tensor
    offset_S: Tensor

    def __call__(self, pre_NS: Tensor) -> Tensor:
        """The latents (N, S)."""
        return (self.scale_S * pre_NS + self.offset_S).relu() * (pre_NS > 0)


Activation: TypeAlias = TopK | Threshold | ReLU | Gate
