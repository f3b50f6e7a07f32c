"""Two SAEs compared at one L0: the denser one loses its cutoff latents first."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from groupsae.activations.source import ActivationSource, stream
from groupsae.saes.base import Latents
from groupsae.saes.suite import BoundSAE

TOLERANCE = 0.01
"""L0s that differ by less than this share count as equal."""


@dataclass(frozen=True)
class MatchedPair:
    """FVU of two SAEs at the smaller of their L0s."""

    l0: float
    first: float
    second: float


@torch.no_grad()
def fvu_at_equal_l0(
    one: BoundSAE, other: BoundSAE, source: ActivationSource, num_tokens: int, *, seed: int = 0
) -> MatchedPair:
    """FVU of two SAEs at one hookpoint, the denser one thinned to the L0 of the other.

    Thinning leaves out the latents below a threshold, the same for all tokens, chosen on these tokens so
    that the mean number left is the other's L0. L0s within 1 % are left as they are. Memory grows with
    the tokens times the latents of one token.
    """
    layer = source.hookpoints.index(one.hookpoint)
    x_ND = torch.cat([x_LND[layer].float() for x_LND in stream(source, num_tokens, seed)])
    latents = [bound.encode_sparse(x_ND) for bound in (one, other)]
    l0s = [_l0(each) for each in latents]
    smaller = min(l0s)
    if max(l0s) > smaller * (1 + TOLERANCE):
        latents = [thin(each, smaller) for each in latents]
    variance = (x_ND.double() - x_ND.double().mean(0)).square().sum().item()
    errors = [
        (x_ND - bound.decode_sparse(each)).double().square().sum().item()
        for bound, each in zip((one, other), latents, strict=True)
    ]
    return MatchedPair(smaller, errors[0] / variance, errors[1] / variance)


def thin(latents: Latents, l0: float) -> Latents:
    """The strongest latents over all tokens, `l0` of them per token in the mean; the rest are zero."""
    values = latents.values_NK.flatten()
    kept = min(len(values), max(0, round(l0 * len(latents.values_NK))))
    threshold = values.kthvalue(len(values) - kept).values if kept < len(values) else values.new_zeros(())
    return Latents(latents.values_NK.where(latents.values_NK > threshold, 0), latents.indices_NK)


def _l0(latents: Latents) -> float:
    return (latents.values_NK > 0).sum().item() / len(latents.values_NK)
