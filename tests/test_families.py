"""Every family of causal LMs, from rows of tokens to an evaluation."""

import numpy as np
import pytest
from families import BLOCKS, FAMILIES, LENGTH, VOCAB, family_model

from groupsae.activations.harvest import Harvester
from groupsae.config import TopKConfig, TrainConfig
from groupsae.evaluation.losses import evaluate_losses
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.grouping.angular import angular_distances
from groupsae.model_structure import find_blocks, find_hookpoints
from groupsae.partition import Partition
from groupsae.planning.architecture import Architecture
from groupsae.planning.cost import run_cost, sparse_step_flops
from groupsae.text.tokens import TokenRows
from groupsae.training.fit import measure_scales
from groupsae.training.trainer import train_groups

ROWS = TokenRows(np.random.default_rng(0).integers(3, VOCAB, (12, LENGTH)).astype(np.uint16))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_from_tokens_to_evaluation(family):
    model = family_model(family)
    hookpoints = find_hookpoints(model, ["residual"])
    assert len(hookpoints) == BLOCKS - 1
    source = Harvester(model, ROWS, hookpoints, batch_rows=4)
    distances = angular_distances(source, 96)
    assert distances.hookpoints == hookpoints
    groups = (hookpoints,)
    cost = run_cost(Architecture.of(model, find_blocks(model)[1]), groups, sparse_step_flops(32, 64, 4), 64, LENGTH)
    assert cost.harvest > 0
    settings = TrainConfig(num_tokens=64, batch_tokens=32, scale_tokens=64)
    scales = measure_scales(source, 64)
    trained = train_groups(source, groups, scales, TopKConfig(d_sae=64, k=4), settings, seed=0, buffer_tokens=64)
    suites = {"groups": trained.suite(Partition(groups))}
    found = evaluate_reconstructions(suites, source, 64).suites["groups"]
    losses = evaluate_losses(suites, source, 32)
    assert all(np.isfinite(layer.fvu) for layer in found.values())
    assert all(np.isfinite(loss.ce) for loss in losses.suites["groups"].values())
