"""The learning-rate rule, its schedule, and Adam as both papers set it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def learning_rate(d_sae: int) -> float:
    """2e-4 / sqrt(d_sae / 2^14): 2.309401e-4 for 12,288 latents, 2e-4 for 16,384, 1.414214e-4 for 32,768.

    Source: Group-SAE's training script, after Gao et al. 2024.
    """
    return 2e-4 / math.sqrt(d_sae / 2**14)


def decay(progress: float, share: float) -> float:
    """The factor on the learning rate when a share `progress` of the tokens has been seen.

    1, then a straight line to 0 over the last `share`; always 1 if `share` is 0.
    """
    return 1.0 if share == 0 else min(1.0, (1 - progress) / share)


def warmup(progress: float, share: float) -> float:
    """The factor on a sparsity penalty, or on the learning rate, when a share `progress` of the tokens has been seen.

    A straight line from 0 to 1 over the first `share`; always 1 if `share` is 0.
    """
    return 1.0 if share == 0 else min(1.0, progress / share)


def clip(parameters: Iterable[nn.Parameter], largest: float, norm: Tensor | None = None) -> Tensor:
    """The norm of one SAE's gradients, all together, which are then scaled so that it is at most `largest`.

    `norm` is that norm where more than these parameters count. On a CPU gradients within it are left alone; elsewhere
    looking would be a synchronization.
    """
    owners = [parameter for parameter in parameters if parameter.grad is not None]
    if norm is None:
        norm = nn.utils.get_total_norm([parameter.grad for parameter in owners])
    if norm.device.type != "cpu" or not norm <= largest:
        nn.utils.clip_grads_with_norm_(owners, largest, norm)
    return norm


def adam(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Adam:
    """Adam with betas (0.9, 0.999) and eps 1e-8, in one fused pass over the weights."""
    return torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.999), eps=1e-8, fused=True)
