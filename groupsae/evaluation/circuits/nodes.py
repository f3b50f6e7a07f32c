"""Which latents form a circuit: the strongest ones, by layer or by one threshold over all layers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from groupsae.evaluation.circuits.attribution import Effects

NodeSet = dict[str, Tensor]
"""True for the latents (S,) that belong to a circuit, by hookpoint; at every position alike."""


def choose_nodes(effects: Effects, size: int, choose: Literal["per-layer", "overall"] = "per-layer") -> NodeSet:
    """The latents of largest |effect|: `size` of each hookpoint, or `size` times their number of all together.

    A latent without any effect is never taken, so a set may hold fewer. Equal effects go to the latent
    that stands first.
    """
    if choose == "per-layer":
        return {name: _strongest(effect_S, size) for name, effect_S in effects.items()}
    taken = _strongest(torch.cat(list(effects.values())), size * len(effects))
    return dict(zip(effects, taken.split([len(effect_S) for effect_S in effects.values()]), strict=True))


def complement(nodes: NodeSet) -> NodeSet:
    """Every latent that is not in the set."""
    return {name: ~taken_S for name, taken_S in nodes.items()}


def count_nodes(nodes: NodeSet) -> int:
    """Latents in the set, over all hookpoints."""
    return sum(int(taken_S.sum()) for taken_S in nodes.values())


def weakest_effect(effects: Effects, nodes: NodeSet) -> float | None:
    """The smallest |effect| in the set, in logits; None for an empty one."""
    taken = torch.cat([effects[name][taken_S] for name, taken_S in nodes.items()])
    return taken.abs().min().item() if len(taken) else None


def _strongest(effect_S: Tensor, size: int) -> Tensor:
    order = effect_S.abs().argsort(descending=True, stable=True)[:size]
    taken_S = torch.zeros(len(effect_S), dtype=torch.bool)
    taken_S[order] = True
    return taken_S & (effect_S != 0)
