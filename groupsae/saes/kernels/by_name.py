"""The paths that a step can take: which there are, by name, and which a device has."""

from __future__ import annotations

import torch

from groupsae.saes.kernels.dense import DenseKernel
from groupsae.saes.kernels.gather import GatherKernel
from groupsae.saes.kernels.sparse_grads import SparseGrads

DEFINITION = GatherKernel
"""The path that the others are compared with, and that runs everywhere."""


def path_named(name: str) -> type[SparseGrads]:
    """`sparse`, `triton` or `dense`. Raises ImportError if Triton is asked for and not there."""
    if name == "triton":
        from groupsae.saes.kernels.triton import TritonKernel

        return TritonKernel
    return {path.name: path for path in (GatherKernel, DenseKernel)}[name]


def paths_on(device: torch.device) -> tuple[str, ...]:
    """The names of the paths worth trying on a device, the definition first.

    On a CPU the sparse one wins every operation, at 1 of 96 latents active as at 1 of 256, so nothing is tried.
    """
    return (DEFINITION.name, "triton", DenseKernel.name) if device.type == "cuda" else (DEFINITION.name,)
