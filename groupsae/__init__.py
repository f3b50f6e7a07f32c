"""Sparse autoencoders for every layer of a language model, at a fraction of the usual cost.

The public names, nothing else. They are loaded when first used, so that `import groupsae` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupsae.activations.cache import CachedActivations as CachedActivations
    from groupsae.activations.harvest import Harvester as Harvester
    from groupsae.config import BatchTopKConfig as BatchTopKConfig
    from groupsae.config import GatedConfig as GatedConfig
    from groupsae.config import JumpReLUConfig as JumpReLUConfig
    from groupsae.config import MatryoshkaConfig as MatryoshkaConfig
    from groupsae.config import ReLUConfig as ReLUConfig
    from groupsae.config import RunConfig as RunConfig
    from groupsae.config import TopKConfig as TopKConfig
    from groupsae.config import TrainConfig as TrainConfig
    from groupsae.config import load_config as load_config
    from groupsae.errors import GroupsaeError as GroupsaeError
    from groupsae.evaluation.losses import evaluate_losses as evaluate_losses
    from groupsae.evaluation.reconstruction import evaluate_reconstruction as evaluate_reconstruction
    from groupsae.grouping.angular import angular_distances as angular_distances
    from groupsae.grouping.choose import group_layers as group_layers
    from groupsae.grouping.distances import Distances as Distances
    from groupsae.grouping.measure import measure_distances as measure_distances
    from groupsae.interop.dictionary_learning import export_dictionary_learning as export_dictionary_learning
    from groupsae.interop.importing import import_suite as import_suite
    from groupsae.interop.saelens import export_saelens as export_saelens
    from groupsae.interop.sparsify import export_sparsify as export_sparsify
    from groupsae.model_structure import find_hookpoints as find_hookpoints
    from groupsae.model_structure import residual_stream as residual_stream
    from groupsae.models import load_model as load_model
    from groupsae.partition import Partition as Partition
    from groupsae.planning.cost import paper_cost as paper_cost
    from groupsae.recipes.context import RunContext as RunContext
    from groupsae.recipes.run import run_all as run_all
    from groupsae.records.run_directory import RunDirectory as RunDirectory
    from groupsae.saes.scales import Scales as Scales
    from groupsae.saes.suite import Suite as Suite
    from groupsae.text.tokens import TokenRows as TokenRows
    from groupsae.training.fit import measure_scales as measure_scales
    from groupsae.training.trainer import train as train
    from groupsae.training.warm_start import WarmStart as WarmStart

_HOMES = {
    "BatchTopKConfig": "config",
    "CachedActivations": "activations.cache",
    "Distances": "grouping.distances",
    "GatedConfig": "config",
    "GroupsaeError": "errors",
    "Harvester": "activations.harvest",
    "JumpReLUConfig": "config",
    "MatryoshkaConfig": "config",
    "Partition": "partition",
    "ReLUConfig": "config",
    "RunConfig": "config",
    "RunContext": "recipes.context",
    "RunDirectory": "records.run_directory",
    "Scales": "saes.scales",
    "Suite": "saes.suite",
    "TokenRows": "text.tokens",
    "TopKConfig": "config",
    "TrainConfig": "config",
    "WarmStart": "training.warm_start",
    "angular_distances": "grouping.angular",
    "evaluate_losses": "evaluation.losses",
    "evaluate_reconstruction": "evaluation.reconstruction",
    "export_dictionary_learning": "interop.dictionary_learning",
    "export_saelens": "interop.saelens",
    "export_sparsify": "interop.sparsify",
    "find_hookpoints": "model_structure",
    "group_layers": "grouping.choose",
    "import_suite": "interop.importing",
    "load_config": "config",
    "load_model": "models",
    "measure_distances": "grouping.measure",
    "measure_scales": "training.fit",
    "paper_cost": "planning.cost",
    "residual_stream": "model_structure",
    "run_all": "recipes.run",
    "train": "training.trainer",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'groupsae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"groupsae.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
