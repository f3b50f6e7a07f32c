"""A layer's own encoder bias: the sparse step with it, and an SAE that holds it."""

import copy

import pytest
import torch
from architecture_cases import CONFIGS, LAYERS, WARMUP, leaves, naive, random_sae_of
from sae_cases import D_MODEL, D_SAE, dead, random_batch

from groupsae.config import PerLayer
from groupsae.saes.kernels import gather, pre_activations
from groupsae.saes.layer_maps import Bias, LayerMaps
from groupsae.training.microbatch import backward_in_splits

LAYERS_N = torch.tensor(LAYERS)
SEVERAL_DEAD = dead(*range(0, D_SAE, 3))


def random_layer_maps():
    """The maps of a group of three layers whose biases are random, in float64."""
    maps = LayerMaps(3, D_MODEL, PerLayer(bias=True), D_SAE).double()
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        maps.bias_MS.copy_(torch.randn(3, D_SAE, generator=random, dtype=torch.float64) / 2)
    return maps


@pytest.fixture(params=[1.0, 0.0], ids=["listed", "all"])
def listing(request, monkeypatch):
    """Pre-activations as a list, and all of them, whatever their number; in tiles of seven tokens."""
    monkeypatch.setattr(pre_activations, "DENSE_SHARE", request.param)
    monkeypatch.setitem(gather.TILE_NUMBERS, "cpu", 7 * D_SAE)


@pytest.mark.usefixtures("listing")
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_loss_and_every_gradient_equal_the_naive_definition(architecture, parts):
    sae, maps, z_ND = random_sae_of(architecture), random_layer_maps(), random_batch()
    w = leaves(sae) | {"bias_MS": maps.bias_MS.detach().clone().requires_grad_()}
    total, gradients, latents_NS = naive(architecture, w, z_ND, SEVERAL_DEAD)
    outcome = backward_in_splits(sae, z_ND, SEVERAL_DEAD, WARMUP, parts, maps.bias(LAYERS_N))
    torch.testing.assert_close(outcome.total, total, rtol=1e-10, atol=0)
    assert outcome.activity.active == (latents_NS > 0).sum()
    assert torch.equal(outcome.activity.fired_S, (latents_NS > 0).any(0))
    for name, parameter in [*sae.named_parameters(), *maps.named_parameters()]:
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-8, atol=1e-11, msg=name)
    assert (maps.bias_MS.grad != 0).any(1).all()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_sae_that_holds_a_layers_bias_does_what_the_two_do(architecture):
    sae, maps, z_ND = random_sae_of(architecture), random_layer_maps(), random_batch()
    before = copy.deepcopy(sae.state_dict())
    for layer in range(3):
        held, layers_N = maps.with_bias(sae, layer), torch.full((len(z_ND),), layer)
        beside, within = sae.losses(z_ND, dead(), layer_bias=maps.bias(layers_N)), held.losses(z_ND, dead())
        torch.testing.assert_close(within.total, beside.total, rtol=1e-12, atol=0)
        torch.testing.assert_close(within.latents.dense(D_SAE), beside.latents.dense(D_SAE), rtol=1e-10, atol=1e-12)
        assert held.W_enc is sae.W_enc
        assert held.W_dec is sae.W_dec
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


def test_with_all_rows_alike_it_is_the_common_bias_to_the_bit():
    z_ND, W_SD = random_batch().float(), torch.randn(D_SAE, D_MODEL, generator=torch.Generator().manual_seed(0))
    b_S = torch.randn(D_SAE, generator=torch.Generator().manual_seed(1))
    rows = Bias(b_S.repeat(3, 1), LAYERS_N)
    assert torch.equal(rows.add_to(z_ND @ W_SD.T), Bias(b_S).add_to(z_ND @ W_SD.T))


def test_a_group_of_one_layer_has_no_bias():
    maps = LayerMaps(1, D_MODEL, PerLayer(bias=True), D_SAE)
    assert maps.bias(torch.zeros(4, dtype=torch.long)) is None
    assert not list(maps.parameters())
    sae = random_sae_of("topk")
    assert maps.with_bias(sae, 0) is sae
