"""Suites of random SAEs for the blocks of small models, and what a block returns."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "saes"))
from suite_cases import OWN, PARTITION, random_suite

from groupsae.activations.outputs import OutputReader
from groupsae.config import TopKConfig
from groupsae.model_structure import base_model, first_tensor, residual_stream
from groupsae.partition import Partition
from groupsae.saes.registry import build_sae
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite

__all__ = ["OWN", "PARTITION", "outputs_of", "plain_suite", "resumed", "suite_for", "texts"]
K = 5


def plain_suite(architecture="topk", own="nothing"):
    """A suite in float32 for three blocks `layers.0` to `layers.2` of width 16."""
    suite = random_suite(architecture, own)
    for module in (*suite.saes.values(), *suite.layer_maps.values()):
        module.float()
    return suite


def suite_for(model, d_model, config=None, layers=None):
    """A suite of random TopK SAEs for the blocks of a model: the first two share one, and so do the others."""
    layers = layers or residual_stream(model)
    partition = Partition(tuple(filter(None, (tuple(layers[:2]), tuple(layers[2:])))))
    saes = {name: build_sae(d_model, config or TopKConfig(expansion=4, k=K)) for name in partition.names}
    for seed, sae in enumerate(saes.values()):
        sae.initialize(seed)
        sae.requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    scale_L = torch.rand(len(layers), generator=random) + 0.1
    center_LD = torch.randn(len(layers), d_model, generator=random) / 10
    return Suite(partition, saes, Scales(partition.hookpoints, scale_L, center_LD))


def texts(rows=2, length=6, vocabulary=60, padding=0, seed=0):
    """Ids and a mask of rows of a batch; the first row begins with padding."""
    random = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(3, vocabulary, (rows, length), generator=random)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :padding] = 0
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


@torch.no_grad()
def outputs_of(model, layers, batch):
    """The output (B, T, D) of each layer, read without a suite."""
    modules = {layer: base_model(model).get_submodule(layer) for layer in layers}
    found, _ = OutputReader(modules).run(lambda: model(**batch))
    return {layer: first_tensor(output) for layer, output in found.items()}


def resumed(output):
    """The argument that makes a model read on with the cache of an earlier pass; its name depends on transformers."""
    name = "cache" if "cache" in output else "past_key_values"
    return {name: output[name]}
