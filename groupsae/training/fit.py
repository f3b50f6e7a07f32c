"""What is fitted to activations before the first step: each hookpoint's scale, and each layer's rotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource, stream
from groupsae.activations.stats import ActivationStats, CenteringSource, measure_stats
from groupsae.config import PerLayer
from groupsae.partition import Group
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.scales import Scales


def measure_scales(
    source: ActivationSource,
    num_tokens: int,
    *,
    center: bool = False,
    seed: int = 0,
    stats: ActivationStats | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scales:
    """Scales with s_l = 1 / mean ||x_l - c_l||, over `num_tokens` tokens.

    c_l is zero, or with `center` the mean of x_l. That takes one pass, two with a center; none if the `stats` of these
    tokens are given. Sums are float64. Source: Group-SAE normalizes by 1 / mean norm, without a center.
    """
    if stats is None:
        stats = measure_stats(source, num_tokens, seed, centered=center, progress=progress)
    elif center and stats.centered_norm_L is None:
        stats = CenteringSource(source, stats, seed).finish(progress)
    return Scales.from_stats(stats, center=center).to(source.device)


def fit_layer_maps(
    source: ActivationSource,
    groups: Sequence[Group],
    scales: Scales,
    per_layer: PerLayer,
    num_tokens: int,
    *,
    d_sae: int = 0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[Group, LayerMaps]:
    """The layer maps of groups; empty where `per_layer` asks for nothing.

    Rotations are found in closed form from `num_tokens` tokens, in one pass. Biases, of `d_sae` latents, are zero, to
    be learned; for biases alone nothing is read.
    """
    if not per_layer.any:
        return {}
    layer_maps = {group: LayerMaps(len(group), source.d_model, per_layer, d_sae).to(source.device) for group in groups}
    if not per_layer.rotation:
        return layer_maps
    moments = {group: _CrossMoments(len(group), source.d_model, source.device) for group in groups}
    layers = {group: [source.hookpoints.index(name) for name in group] for group in groups}
    for x_LND in stream(source, num_tokens, seed):
        for group, sums in moments.items():
            of_group = scales.at(group)
            z_MND = (x_LND[layers[group]].float() - of_group.center_LD[:, None]) * of_group.scale_L[:, None, None]
            sums.add(z_MND)
        if progress:
            progress(x_LND.shape[1])
    for group, sums in moments.items():
        layer_maps[group].rotation_MDD.copy_(sums.rotations())
    return layer_maps


class _CrossMoments:
    """Sums over tokens, in float64, of z_middle z_l^T: the group's middle layer with each of its layers."""

    def __init__(self, layers: int, d_model: int, device: torch.device) -> None:
        self.count, self.middle = 0, layers // 2
        self.sum_MDD = torch.zeros(layers, d_model, d_model, dtype=torch.float64, device=device)

    def add(self, z_MND: Tensor) -> None:
        z_MND = z_MND.double()
        self.count += z_MND.shape[1]
        self.sum_MDD += z_MND[self.middle].T @ z_MND

    def rotations(self) -> Tensor:
        """The orthogonal R_l that bring R_l z_l nearest to z_middle (Procrustes)."""
        u_MDD, _, vh_MDD = torch.linalg.svd(self.sum_MDD / self.count)
        return u_MDD @ vh_MDD
