"""What is evaluated: each SAE at each hookpoint it serves, once, however many suites share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from groupsae.partition import Group, group_name
from groupsae.saes.suite import BoundSAE, Suite


class Site(NamedTuple):
    """An SAE at a hookpoint: the first suite that has this SAE, its group's name, and the hookpoint."""

    suite: str
    group: str
    hookpoint: str


Result = TypeVar("Result")


def sites(suites: Mapping[str, Suite]) -> dict[Site, BoundSAE]:
    """Every SAE of the suites at every hookpoint it serves; one that several suites share stands once.

    Suites share a group's SAE where its weights, config, scales and centers are equal; the group
    alone is not enough, since suites may have been trained differently.
    """
    return {
        site: suites[site.suite][site.hookpoint]
        for name, suite in suites.items()
        for site in _subjects_of(name, suite, suites).values()
    }


def by_suite(suites: Mapping[str, Suite], results: Mapping[Site, Result]) -> dict[str, dict[str, Result]]:
    """Results per site, as results per suite and hookpoint; sites without a result are left out."""
    return {
        name: {
            hookpoint: results[site] for hookpoint, site in _subjects_of(name, suite, suites).items() if site in results
        }
        for name, suite in suites.items()
    }


def _subjects_of(name: str, suite: Suite, suites: Mapping[str, Suite]) -> dict[str, Site]:
    found = {}
    for group in suite.partition.groups:
        owner = next(other for other in suites if other == name or _equal(suites[other], suite, group))
        found |= {hookpoint: Site(owner, group_name(group), hookpoint) for hookpoint in group}
    return {hookpoint: found[hookpoint] for hookpoint in suite.partition.hookpoints}


def _equal(one: Suite, other: Suite, group: Group) -> bool:
    if group not in one.partition.groups:
        return False
    return all(_equal_at(one[hookpoint], other[hookpoint]) for hookpoint in group)


def _equal_at(one: BoundSAE, other: BoundSAE) -> bool:
    if one.scale != other.scale or not torch.equal(one.center_D, other.center_D):
        return False
    if one.sae is other.sae:
        return True
    if one.sae.config != other.sae.config or (one.maps is None) != (other.maps is None):
        return False
    return _same(one.sae, other.sae) and (one.maps is None or _same(one.maps, other.maps))


def _same(one: nn.Module, other: nn.Module) -> bool:
    tensors, others = one.state_dict(), other.state_dict()
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != {name: tensor.shape for name, tensor in others.items()}:
        return False
    return all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
