"""Which latents are dead: those that have not fired for a number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from groupsae.saes.base import FiringStats


class DeadLatents:
    """Counts, for every latent, the tokens since it last fired. A value of zero is not firing."""

    def __init__(self, d_sae: int, dead_after_tokens: int, device: torch.device) -> None:
        self.silent_S = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.dead_after_tokens = dead_after_tokens

    @property
    def mask_S(self) -> Tensor:
        """True for each dead latent."""
        return self.silent_S >= self.dead_after_tokens

    def update(self, activity: FiringStats, sound: Tensor | bool = True) -> None:
        """Take note of what fired in a batch, if the step was sound."""
        self.silent_S += activity.tokens * sound
        self.silent_S.masked_fill_(activity.fired_S & sound, 0)
