"""Suites of random SAEs whose layers have all of their own: centers, scales, biases, rotations."""

import torch
from architecture_cases import random_sae_of
from sae_cases import D_MODEL, D_SAE

from groupsae.config import PerLayer
from groupsae.partition import Partition
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite

PARTITION = Partition((("layers.0", "layers.2"), ("layers.1",)))
OWN = {
    "nothing": PerLayer(),
    "bias": PerLayer(bias=True),
    "rotation": PerLayer(rotation=True),
    "all": PerLayer(bias=True, rotation=True),
}


def random_suite(architecture, own="nothing", seed=0):
    """A suite of three layers in two groups, in float64."""
    random = torch.Generator().manual_seed(seed)
    hookpoints = PARTITION.hookpoints
    scales = Scales(
        hookpoints,
        torch.rand(len(hookpoints), generator=random) + 0.3,
        torch.randn(len(hookpoints), D_MODEL, generator=random),
    )
    saes = {name: trained(random_sae_of(architecture, place)) for place, name in enumerate(PARTITION.names)}
    layer_maps = {
        name: random_layer_maps(len(group), OWN[own], random)
        for group, name in zip(PARTITION.groups, PARTITION.names, strict=True)
        if OWN[own].any
    }
    return Suite(PARTITION, saes, scales, layer_maps)


def trained(sae):
    """The SAE, with the threshold that steps would have given it, if it has one for all latents."""
    for name, buffer in sae.named_buffers():
        if name in ("threshold.total", "threshold.weight"):
            buffer.fill_(0.5 if name.endswith("weight") else 0.2)
    return sae.requires_grad_(False)


def random_layer_maps(layers, own, random):
    """Maps that no data has led to."""
    maps = LayerMaps(layers, D_MODEL, own, D_SAE).double()
    square = torch.randn(layers, D_MODEL, D_MODEL, generator=random, dtype=torch.float64)
    orthogonal = torch.linalg.qr(square).Q
    if own.rotation:
        maps.rotation_MDD.copy_(orthogonal)
    if maps.bias_MS is not None:
        maps.bias_MS.data.normal_(std=0.2, generator=random)
    return maps.requires_grad_(False)
