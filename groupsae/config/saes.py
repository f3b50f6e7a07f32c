"""One section per SAE architecture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from groupsae.config.section import Count, Positive, Section
from groupsae.errors import ConfigError


class TopKConfig(Section):
    """A TopK SAE."""

    architecture: Literal["topk"] = "topk"
    """The kind of SAE."""
    expansion: Positive = 16.0
    """Latents per dimension of the activations."""
    d_sae: Count | None = None
    """The number of latents itself, instead of `expansion`."""
    k: Count = 128
    """Latents kept per token."""
    auxk_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1 / 32
    """Weight of the auxiliary loss that revives dead latents."""
    dead_after_tokens: Count = 10_000_000
    """A latent that has not fired for this many tokens is dead."""

    @model_validator(mode="after")
    def _k_latents_exist(self) -> TopKConfig:
        if self.d_sae is not None:  # else the width is known only with the model
            self.width(self.d_sae)
        return self

    def width(self, d_model: int) -> int:
        """The number of latents for activations of this width. Raises ConfigError if k exceeds it."""
        width = self.d_sae or max(1, round(self.expansion * d_model))
        if self.k > width:
            raise ConfigError(f"sae.k = {self.k} is more than the {width} latents there are; lower k or raise d_sae.")
        return width
