"""Architectures by name: one line each."""

from __future__ import annotations

from groupsae.config import TopKConfig
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.topk import TopKSAE

ARCHITECTURES: dict[str, tuple[type[TopKConfig], type[TopKSAE]]] = {
    "topk": (TopKConfig, TopKSAE),
}


def build_sae(d_model: int, config: TopKConfig) -> SparseAutoencoder:
    """An SAE of the config's architecture for activations of width d_model, its weights zero."""
    return ARCHITECTURES[config.architecture][1](d_model, config)
