"""What the tests of other tools share: the largest difference, and weights that a few steps have moved."""

import torch
from interop_cases import D_MODEL, random_batch

from groupsae.interop.importing import import_suite

STEPS = 20


def largest(found, expected):
    """The largest absolute difference, of at least one number."""
    assert found.shape == expected.shape and found.numel()
    return (found - expected).abs().max().item()


def batches(seed=0):
    """Small batches of tokens with a mean of their own, in float32."""
    random = torch.Generator().manual_seed(seed)
    mix_DD = torch.randn(D_MODEL, D_MODEL, generator=random)
    return [torch.randn(64, D_MODEL, generator=random) @ mix_DD / 3 + 0.5 for _ in range(STEPS)]


def compare_imported(folder, hookpoint, encode, forward, measured, tool, architecture, suite=None):
    """Import a folder; latents and reconstructions of ours against those of the tool."""
    ours = (suite or import_suite(folder))[hookpoint]
    x_ND = random_batch().float()
    with torch.no_grad():
        measured(tool, architecture, "theirs, imported: latents", largest(ours.encode(x_ND), encode(x_ND)))
        measured(tool, architecture, "theirs, imported: outputs", largest(ours(x_ND), forward(x_ND)))
        assert (ours.encode(x_ND) > 0).any()
    return ours
