"""The paths that a step can take: which there are, by name, and which a device has."""

from __future__ import annotations

import torch

from groupsae.saes.active import Active
from groupsae.saes.dense import Scattered
from groupsae.saes.sparse import Transposed

DEFINITION = Transposed
"""The path that the others are compared with, and that runs everywhere."""


def path_named(name: str) -> type[Active]:
    """`sparse`, `triton` or `dense`. Raises ImportError if Triton is asked for and not there."""
    if name == "triton":
        from groupsae.saes.kernels import KernelTransposed

        return KernelTransposed
    return {path.name: path for path in (Transposed, Scattered)}[name]


def paths_on(device: torch.device) -> tuple[str, ...]:
    """The names of the paths worth trying on a device, the definition first.

    On a CPU the sparse one wins every operation, at 1 of 96 latents active as at 1 of 256, so nothing is tried.
    """
    return (DEFINITION.name, "triton", Scattered.name) if device.type == "cuda" else (DEFINITION.name,)
