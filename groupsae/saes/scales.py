"""Each hookpoint's center and scale: z = s_l (x_l - c_l), so that layers of a group are of one size.

They belong to the hookpoint, not to the SAE: one SAE serves layers of different norms, and only
an export folds them into weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from groupsae.activations.source import ActivationSource, stream
from groupsae.errors import NumericalError, RunError


@dataclass(frozen=True)
class Scales:
    """Scale s (L,) and center c (L, D), float32, of each hookpoint."""

    hookpoints: tuple[str, ...]
    scale_L: Tensor
    center_LD: Tensor

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


def measure_scales(
    source: ActivationSource,
    num_tokens: int,
    *,
    center: bool = False,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Scales:
    """Scales with s_l = 1 / mean ||x_l - c_l||, over `num_tokens` tokens.

    c_l is the mean of x_l if `center` (which takes a second pass), else zero. Sums are float64.
    Source: Group-SAE normalizes by 1 / mean norm, without a center.
    """
    center_LD = torch.zeros(len(source.hookpoints), source.d_model, device=source.device)
    if center:
        total_LD, count = center_LD.double(), 0
        for x_LND in stream(source, num_tokens, seed):
            total_LD += x_LND.sum(1, dtype=torch.float64)
            count += x_LND.shape[1]
            if progress:
                progress(x_LND.shape[1])
        center_LD = (total_LD / count).float()
    norms_L, count = torch.zeros(len(source.hookpoints), dtype=torch.float64, device=source.device), 0
    for x_LND in stream(source, num_tokens, seed):
        norms_L += (x_LND.float() - center_LD[:, None]).norm(dim=-1).sum(1, dtype=torch.float64)
        count += x_LND.shape[1]
        if progress:
            progress(x_LND.shape[1])
    silent = [name for name, norm in zip(source.hookpoints, norms_L.tolist(), strict=True) if not norm > 0]
    if silent:
        raise NumericalError(f"Activations at {', '.join(silent)} are all the same; there is nothing to train on.")
    return Scales(source.hookpoints, (count / norms_L).float(), center_LD)
