"""Architectures of configs, counted without weights."""

import torch
from transformers import AutoModelForCausalLM

from groupsae.model_structure import find_blocks
from groupsae.planning.architecture import Architecture


def counted(config):
    """The architecture of a config."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return Architecture.of(model, find_blocks(model)[1])
