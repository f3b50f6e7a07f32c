"""Suites to export: random, of every architecture, in float32, as they are when they have been loaded."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "saes"))
from architecture_cases import CONFIGS, OTHERS
from sae_cases import D_MODEL, D_SAE, random_batch
from suite_cases import OWN, PARTITION, random_suite

__all__ = ["CONFIGS", "D_MODEL", "D_SAE", "OTHERS", "OWN", "PARTITION", "random_batch", "single"]


def single(architecture, own="nothing"):
    """A suite in float32, whose layers have this of their own."""
    suite = random_suite(architecture, own)
    for module in (*suite.saes.values(), *suite.layer_maps.values()):
        module.float()
    return suite
