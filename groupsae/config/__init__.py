"""The run's config: one frozen section per stage, read from TOML, overridden by flags.

Unknown keys are errors that name the nearest known one. Nothing here imports torch, so that
`groupsae --help` is fast. Only `recipes` and `cli` see a whole `RunConfig`; every other function
receives its own section.
"""

from groupsae.config.circuits import CircuitsConfig
from groupsae.config.run import RunConfig, commented_toml, load_config
from groupsae.config.saes import (
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    PenaltyConfig,
    ReLUConfig,
    SAEConfig,
    TopKConfig,
    as_architecture,
)
from groupsae.config.section import Section, differing_keys, dump_config, flat
from groupsae.config.stages import (
    GROUP_METHODS,
    ActivationsConfig,
    ContextsConfig,
    Direction,
    DistancesConfig,
    EvalConfig,
    GroupConfig,
    ModelConfig,
    PerLayer,
    PlanConfig,
    TextConfig,
    TrainConfig,
    WarmStartConfig,
)
from groupsae.config.variants import Variant, setting_names, variants_of

__all__ = [
    "GROUP_METHODS",
    "ActivationsConfig",
    "BatchTopKConfig",
    "CircuitsConfig",
    "ContextsConfig",
    "Direction",
    "DistancesConfig",
    "EvalConfig",
    "GatedConfig",
    "GroupConfig",
    "JumpReLUConfig",
    "MatryoshkaConfig",
    "ModelConfig",
    "PenaltyConfig",
    "PerLayer",
    "PlanConfig",
    "ReLUConfig",
    "RunConfig",
    "SAEConfig",
    "Section",
    "TextConfig",
    "TopKConfig",
    "TrainConfig",
    "Variant",
    "WarmStartConfig",
    "as_architecture",
    "commented_toml",
    "differing_keys",
    "dump_config",
    "flat",
    "load_config",
    "setting_names",
    "variants_of",
]
