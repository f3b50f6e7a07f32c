"""Architectures by name: one line each."""

from __future__ import annotations

from groupsae.config import (
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    ReLUConfig,
    SAEConfig,
    TopKConfig,
)
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.batchtopk import BatchTopKSAE
from groupsae.saes.gated import GatedSAE
from groupsae.saes.jumprelu import JumpReLUSAE
from groupsae.saes.matryoshka import MatryoshkaSAE
from groupsae.saes.relu import ReLUSAE
from groupsae.saes.topk import TopKSAE

ARCHITECTURES: dict[str, tuple[type[SAEConfig], type[SparseAutoencoder]]] = {
    "topk": (TopKConfig, TopKSAE),
    "batchtopk": (BatchTopKConfig, BatchTopKSAE),
    "matryoshka": (MatryoshkaConfig, MatryoshkaSAE),
    "relu": (ReLUConfig, ReLUSAE),
    "jumprelu": (JumpReLUConfig, JumpReLUSAE),
    "gated": (GatedConfig, GatedSAE),
}


def build_sae(d_model: int, config: SAEConfig) -> SparseAutoencoder:
    """An SAE of the config's architecture for activations of width d_model, its weights zero."""
    return ARCHITECTURES[config.architecture][1](d_model, config)
