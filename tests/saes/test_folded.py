"""An SAE as plain weights in raw units does what the bound SAE does."""

import pytest
import torch
from architecture_cases import CONFIGS, random_sae_of
from sae_cases import random_batch
from suite_cases import OWN, PARTITION, random_suite, trained

from groupsae.saes.folded import Folded


@pytest.fixture
def doubles(monkeypatch):
    """A bound SAE brings activations to float32; here it computes in float64, so that nothing hides in rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_folded_weights_do_to_raw_activations_what_the_bound_sae_does(architecture, own):
    suite, x_ND = random_suite(architecture, own), 2 * random_batch()
    for hookpoint in PARTITION.hookpoints:
        bound, folded = suite[hookpoint], Folded.of(suite[hookpoint])
        pre_NS = bound.sae.pre_activations(bound._to_group(bound._normalize(x_ND)))
        latents_NS = bound.encode(x_ND)
        assert 0 < (latents_NS > 0).sum() < latents_NS.numel()
        close(folded.pre_activations(x_ND), pre_NS)
        close(folded.encode(x_ND), latents_NS)
        close(folded(x_ND), bound(x_ND))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_rule_of_an_architecture_says_what_it_encodes(architecture):
    sae, z_ND = trained(random_sae_of(architecture)), random_batch()
    close(sae.activation()(sae.pre_activations(z_ND)), sae.encode(z_ND))


def test_layers_of_a_group_fold_to_different_weights():
    suite = random_suite("topk", "all")
    one, other = (Folded.of(suite[hookpoint]) for hookpoint in PARTITION.groups[0])
    for name in ("W_enc_SD", "W_dec_SD", "b_dec_D"):
        assert not torch.allclose(getattr(one, name), getattr(other, name), rtol=0.01)
