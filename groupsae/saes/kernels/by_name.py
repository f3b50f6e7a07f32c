"""The kernels that a step can use: which there are, by name, and which a device has."""

from __future__ import annotations

import torch

from groupsae.saes.kernels.dense import DenseKernel
from groupsae.saes.kernels.gather import GatherKernel
from groupsae.saes.kernels.sparse_grads import SparseGrads

REFERENCE = GatherKernel
"""The kernel that the others are compared with, and that runs everywhere."""


def kernel_named(name: str) -> type[SparseGrads]:
    """`gather`, `triton` or `dense`. Raises ImportError if Triton is asked for and not there."""
    if name == "triton":
        from groupsae.saes.kernels.triton import TritonKernel

        return TritonKernel
    return {kernel.name: kernel for kernel in (GatherKernel, DenseKernel)}[name]


def kernels_on(device: torch.device) -> tuple[str, ...]:
    """The names of the kernels worth trying on a device, the definition first.

    On a CPU `gather` wins every operation, at 1 of 96 latents active as at 1 of 256, so nothing is tried.
    """
    return (REFERENCE.name, "triton", DenseKernel.name) if device.type == "cuda" else (REFERENCE.name,)
