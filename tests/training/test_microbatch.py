"""Out of memory: the batch is taken in parts, and the step is the same up to rounding."""

from __future__ import annotations

import pytest
import torch
from training_cases import run, weights

from groupsae.config import TopKConfig
from groupsae.errors import FitError
from groupsae.saes.registry import build_sae
from groupsae.training import group as group_module
from groupsae.training.microbatch import MicroBatches, backward_in_parts


def gradients(parts, dead):
    sae = build_sae(8, TopKConfig(d_sae=24, k=3))
    sae.initialise(1)
    z_ND = torch.randn(37, 8, generator=torch.Generator().manual_seed(2)) + torch.linspace(0, 5, 37)[:, None]
    dead_S = torch.arange(24) < dead
    losses = backward_in_parts(sae, z_ND, dead_S, 1.0, parts)
    return losses, {name: p.grad for name, p in sae.named_parameters()}


@pytest.mark.parametrize("dead", [0, 3, 20])
@pytest.mark.parametrize("parts", [2, 3, 37])
def test_parts_add_up_to_the_whole_batch(parts, dead):
    """V is the batch's variance about the batch's mean: with each part's own V the gradients differ."""
    whole, expected = gradients(1, dead)
    losses, found = gradients(parts, dead)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7)
    for name in ("total", "error", "variance", "auxk"):
        torch.testing.assert_close(getattr(losses, name), getattr(whole, name).detach(), rtol=1e-6, atol=0)
    assert torch.equal(losses.latents.indices_NK, whole.latents.indices_NK)
    assert bool(whole.auxk > 0) == bool(dead)


class OutOfMemory:
    """Steps on more than `most` tokens at once run out of memory, when a part's gradient is there already."""

    def __init__(self, monkeypatch, most):
        self.failures = 0
        whole = backward_in_parts

        def limited(sae, z_ND, dead_S, sparsity, parts, own):
            if -(-len(z_ND) // parts) > most:
                self.failures += 1
                sae.losses(z_ND[:1], dead_S).total.backward()
                raise torch.OutOfMemoryError("CUDA out of memory (not really)")
            return whole(sae, z_ND, dead_S, sparsity, parts, own)

        monkeypatch.setattr(group_module, "backward_in_parts", limited)


def test_a_training_that_runs_out_of_memory_gives_the_same_saes_up_to_rounding(monkeypatch):
    expected, records = weights(run()), []
    memory = OutOfMemory(monkeypatch, most=20)
    found = weights(run(log=records.append))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    assert memory.failures == 2 * 2  # two groups go from 1 to 2 to 4 parts, once
    assert {record["micro_batches"] for record in records} == {4}


def test_a_step_that_never_fits_is_an_error_that_says_what_to_lower(monkeypatch):
    OutOfMemory(monkeypatch, most=0)
    with pytest.raises(FitError, match=r"does not hold a step on a single token.*sae\.expansion"):
        run()


def test_other_errors_are_not_swallowed():
    def broken(parts):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        MicroBatches().run(broken, lambda: None, 8)
