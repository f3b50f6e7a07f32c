"""Each hookpoint's center and scale: z = s_l (x_l - c_l), so that layers of a group are of one size.

They belong to the hookpoint, not to the SAE: one SAE serves layers of different norms, and only
an export folds them into weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from groupsae.errors import ConfigError, NumericalError, RunError


class Stats(Protocol):
    """The statistics that scales are made of, measured elsewhere; see `groupsae.activations.stats`."""

    @property
    def hookpoints(self) -> tuple[str, ...]: ...
    @property
    def mean_LD(self) -> Tensor: ...
    @property
    def mean_norm_L(self) -> Tensor: ...
    @property
    def centered_norm_L(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Scales:
    """Scale s (L,) and center c (L, D), float32, of each hookpoint."""

    hookpoints: tuple[str, ...]
    scale_L: Tensor
    center_LD: Tensor

    @classmethod
    def from_stats(cls, stats: Stats, *, center: bool) -> Scales:
        """Scales s_l = 1 / mean norm, so that activations have norm 1 on average, as in Group-SAE.

        The center is the mean, and the norm that of x - mean, or with `center` false zero. Raises NumericalError for a
        hookpoint whose activations all equal the center, ConfigError for statistics without norms of x - mean.
        """
        norm_L = stats.centered_norm_L if center else stats.mean_norm_L
        if norm_L is None:
            raise ConfigError("These statistics lack norms about the mean; measure them with centered = True.")
        silent = [name for name, norm in zip(stats.hookpoints, norm_L.tolist(), strict=True) if not norm > 0]
        if silent:
            raise NumericalError(f"Activations at {', '.join(silent)} are all the same; there is nothing to train on.")
        center_LD = stats.mean_LD.float() if center else torch.zeros_like(stats.mean_LD, dtype=torch.float32)
        return cls(stats.hookpoints, (1 / norm_L).float(), center_LD)

    def of(self, hookpoint: str) -> tuple[float, Tensor]:
        """The scale and center (D,) of one hookpoint."""
        index = self.hookpoints.index(hookpoint)
        return self.scale_L[index].item(), self.center_LD[index]

    def at(self, hookpoints: tuple[str, ...]) -> Scales:
        """Those of some of the hookpoints."""
        places = [self.hookpoints.index(name) for name in hookpoints]
        return Scales(hookpoints, self.scale_L[places], self.center_LD[places])

    def normalize(self, x_ND: Tensor, layers_N: Tensor) -> Tensor:
        """z_ND = s_l (x - c_l), in float32, token n being of layer `layers_N[n]`."""
        if len(self.hookpoints) == 1:
            return (x_ND.float() - self.center_LD[0]) * self.scale_L[0]
        return (x_ND.float() - self.center_LD[layers_N]) * self.scale_L[layers_N, None]

    def to(self, device: torch.device) -> Scales:
        """The same on another device."""
        return Scales(self.hookpoints, self.scale_L.to(device), self.center_LD.to(device))

    def save(self, path: Path) -> None:
        """Write one safetensors file: `scale.<hookpoint>` (1,) and `center.<hookpoint>` (D,)."""
        tensors = {}
        for index, hookpoint in enumerate(self.hookpoints):
            tensors[f"scale.{hookpoint}"] = self.scale_L[index : index + 1].cpu().clone()
            tensors[f"center.{hookpoint}"] = self.center_LD[index].cpu().clone()
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path, hookpoints: tuple[str, ...]) -> Scales:
        """The scales that `save` wrote, of these hookpoints. Raises RunError for a damaged file."""
        try:
            tensors = load_file(path)
            scale_L = torch.cat([tensors[f"scale.{hookpoint}"] for hookpoint in hookpoints])
            center_LD = torch.stack([tensors[f"center.{hookpoint}"] for hookpoint in hookpoints])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise RunError(f"{path} is missing or damaged: {error}. Train again to make it.") from error
        if not (torch.isfinite(scale_L).all() and torch.isfinite(center_LD).all()):
            raise RunError(f"{path} holds NaN or infinity. Train again to make it.")
        if len(scale_L) != len(hookpoints) or center_LD.ndim != 2 or not (scale_L > 0).all():
            raise RunError(f"{path} does not hold a positive scale and a center for each hookpoint. Train again.")
        return cls(hookpoints, scale_L, center_LD)
