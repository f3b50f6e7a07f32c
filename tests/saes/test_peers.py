"""Losses and gradients beside those of SAELens, on the same weights and batch. Skipped where it is not installed."""

import pytest
import torch
from architecture_cases import AUXK_WEIGHT, BANDWIDTH, WARMUP, WEIGHT, K, random_sae_of
from sae_cases import D_MODEL, D_SAE, dead, random_batch

from groupsae.saes.base import BatchStats
from groupsae.saes.batchtopk import MEMORY

saes = pytest.importorskip("sae_lens.saes", reason="SAELens is not installed", exc_type=ImportError)

BASE = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float64", "apply_b_dec_to_input": True}
PEERS = {
    "relu": ("StandardTrainingSAE", {}),
    "jumprelu": ("JumpReLUTrainingSAE", {"jumprelu_bandwidth": BANDWIDTH, "jumprelu_sparsity_loss_mode": "step"}),
    "gated": ("GatedTrainingSAE", {}),
    "batchtopk": ("BatchTopKTrainingSAE", {"k": K}),
    "matryoshka": ("MatryoshkaBatchTopKTrainingSAE", {"k": K, "matryoshka_widths": [4, 14, D_SAE]}),
}
TOPK_OPTIONS = {"rescale_acts_by_decoder_norm": False, "use_sparse_activations": False}


def peer_of(architecture, sae):
    """The SAELens SAE of the same weights, by our names for its parameters."""
    from sae_lens.saes import sae as base

    name, options = PEERS[architecture]
    if "topk" in architecture or architecture == "matryoshka":
        options = options | TOPK_OPTIONS | {"aux_loss_coefficient": AUXK_WEIGHT}
    kind = getattr(saes, name)
    config = getattr(saes, f"{name}Config")
    peer = kind(config(**BASE, **options))
    names = {"W_enc": peer.W_enc, "W_dec": peer.W_dec, "b_dec": peer.b_dec}
    if architecture == "gated":
        names |= {"b_enc": peer.b_gate, "b_mag": peer.b_mag, "r_mag": peer.r_mag}
    else:
        names |= {"b_enc": peer.b_enc}
    if architecture == "jumprelu":
        peer.threshold.data = sae.threshold.detach().clone()
    for name, parameter in names.items():
        ours = getattr(sae, name).detach()
        parameter.data = (ours.T if name == "W_enc" else ours).clone().contiguous()
    return peer, names, base.TrainStepInput


@pytest.mark.parametrize("architecture", PEERS)
def test_loss_and_gradients_equal_those_of_saelens(architecture):
    """Their error is a mean over tokens, ours a share of the variance V: N / V times theirs.

    Along a decoder row we compare nothing: they weigh the penalty by the row's norm, which is 1 here. Their
    Gated SAE lets the gate's reconstruction train the decoder; what the paper holds fixed is left out there.
    """
    sae, z_ND = random_sae_of(architecture), random_batch()
    peer, names, step_input = peer_of(architecture, sae)
    unit = BatchStats.of(z_ND).variance / len(z_ND)
    weight = WARMUP * WEIGHT * unit.item() / (K if architecture == "jumprelu" else 1)
    found = peer.training_forward_pass(step_input(z_ND, {"l1": weight, "l0": weight}, dead(), 0, False))
    found.loss.backward()
    losses = sae.losses(z_ND, dead(), WARMUP)
    losses.total.backward()
    torch.testing.assert_close(losses.total * unit, found.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses.latents.dense(D_SAE), found.feature_acts)
    sae.project_decoder_gradient()
    for name, parameter in names.items():
        if architecture == "gated" and name in ("W_dec", "b_dec"):
            continue
        ours, theirs = getattr(sae, name).grad * unit, parameter.grad.T if name == "W_enc" else parameter.grad
        if name == "W_dec":
            theirs = theirs - (theirs * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9, msg=name)
    if architecture == "jumprelu":
        theirs = peer.threshold.grad * sae.threshold
        torch.testing.assert_close(sae.log_threshold.grad * unit, theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_the_threshold_is_theirs_without_its_bias(architecture):
    sae, z_ND = random_sae_of(architecture), random_batch()
    peer, _, step_input = peer_of(architecture, sae)
    peer.cfg.topk_threshold_lr = 1 - MEMORY
    for step in range(4):
        peer.training_forward_pass(step_input(z_ND + step, {}, dead(), step, False))
        sae.after_step(sae.losses(z_ND + step, dead()).latents.activity(D_SAE), 1e-3)
    torch.testing.assert_close(sae.threshold.value, peer.topk_threshold / (1 - MEMORY**4))
