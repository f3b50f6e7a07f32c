"""Out of memory: the batch is taken in parts, and the step is the same up to rounding."""

from __future__ import annotations

import pytest
import torch
from training_cases import SAE, TRAIN, make_source, run, weights

from groupsae.config import TopKConfig, as_architecture
from groupsae.errors import FitError
from groupsae.saes.registry import ARCHITECTURES, build_sae
from groupsae.saes.scales import Scales
from groupsae.training import group_trainer as group_module
from groupsae.training.fit import measure_scales
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.microbatch import backward_in_splits


def gradients(parts, dead):
    sae = build_sae(8, TopKConfig(d_sae=24, k=3))
    sae.initialize(1)
    z_ND = torch.randn(37, 8, generator=torch.Generator().manual_seed(2)) + torch.linspace(0, 5, 37)[:, None]
    dead_S = torch.arange(24) < dead
    outcome = backward_in_splits(sae, z_ND, dead_S, 1.0, parts)
    return outcome, {name: p.grad for name, p in sae.named_parameters()}


@pytest.mark.parametrize("dead", [0, 3, 20])
@pytest.mark.parametrize("parts", [2, 3, 37])
def test_parts_add_up_to_the_whole_batch(parts, dead):
    """V is the batch's variance about the batch's mean: with each part's own V the gradients differ."""
    whole, expected = gradients(1, dead)
    outcome, found = gradients(parts, dead)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7)
    for name in ("total", "error", "variance", "auxk"):
        torch.testing.assert_close(getattr(outcome, name), getattr(whole, name), rtol=1e-6, atol=0)
    assert torch.equal(outcome.activity.fired_S, whole.activity.fired_S)
    assert (outcome.activity.tokens, outcome.activity.active) == (37, whole.activity.active)
    assert bool(whole.auxk > 0) == bool(dead)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_after_steps_in_parts_every_number_of_a_group_is_that_of_whole_steps(architecture, monkeypatch):
    """In float64, so that nothing hides in rounding. Later tokens are louder, and win where a batch chooses."""
    monkeypatch.setattr(Scales, "normalize", lambda self, x_ND, layers_N: x_ND)
    expected = after_steps(architecture, 1)
    assert expected["sae.b_dec"].any() and expected["silent"].any()
    for parts in (2, 3, 7):
        found = after_steps(architecture, parts)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-7, atol=1e-9, msg=lambda why, n=name: f"{n}: {why}")


def after_steps(architecture, parts):
    """What a group in float64 has become after six steps in so many parts."""
    source, sae = make_source(), as_architecture(SAE, architecture)
    group = GroupTrainer(("layers.1",), measure_scales(source, 100), source.d_model, sae, TRAIN, 0)
    group.sae.double()
    group.split.splits = parts
    for step in range(6):
        z_ND = source.read(range(2 * step, 2 * step + 3))[1].double()
        z_ND *= torch.linspace(0.02, 0.1, len(z_ND))[:, None]
        group.step(z_ND, torch.zeros(len(z_ND), dtype=torch.long), step / 6)
    return group.state()


class OutOfMemory:
    """Steps on more than `most` tokens at once run out of memory, when a part's gradient is there already."""

    def __init__(self, monkeypatch, most):
        self.failures = 0
        whole = backward_in_splits

        def limited(sae, z_ND, dead_S, sparsity, parts, own):
            if -(-len(z_ND) // parts) > most:
                self.failures += 1
                sae.losses(z_ND[:1], dead_S).total.backward()
                raise torch.OutOfMemoryError("CUDA out of memory (not really)")
            return whole(sae, z_ND, dead_S, sparsity, parts, own)

        monkeypatch.setattr(group_module, "backward_in_splits", limited)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_a_training_that_runs_out_of_memory_gives_the_same_saes_up_to_rounding(architecture, monkeypatch, capsys):
    sae = as_architecture(SAE, architecture)
    expected, records = weights(run(sae=sae)), []
    memory = OutOfMemory(monkeypatch, most=20)
    found = weights(run(sae=sae, log=records.append))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    assert memory.failures == 2  # from 1 to 2 to 4 parts, for both groups together
    assert {record["micro_batches"] for record in records} == {4}
    said = capsys.readouterr().err.splitlines()
    assert said == ["memory does not hold a training step whole; it is taken in parts from now on"]


def test_a_step_that_never_fits_is_an_error_that_says_what_to_lower(monkeypatch):
    OutOfMemory(monkeypatch, most=0)
    with pytest.raises(FitError, match=r"does not hold a step on a single token.*sae\.expansion"):
        run()
