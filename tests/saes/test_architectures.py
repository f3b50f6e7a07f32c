"""What every architecture must do; TopK has more tests of its own."""

import pytest
import torch
from architecture_cases import CONFIGS, OTHERS, WARMUP, K, leaves, naive, random_sae_of
from sae_cases import D_MODEL, D_SAE, dead, random_batch

from groupsae.config import BatchTopKConfig, MatryoshkaConfig
from groupsae.saes.base import Latents
from groupsae.saes.kernels import pre_activations
from groupsae.saes.registry import ARCHITECTURES, build_sae
from groupsae.saes.sparsity import START
from groupsae.saes.suite import load_sae, save_sae

DEAD = {"none-dead": dead(), "many-dead": dead(*range(0, D_SAE, 3))}
LISTS = {"listed": 1.0, "all": 0.0}
THRESHOLDS = {"first-step": (0.0, 0.0), "low": (0.2, 0.5), "too-high": (9.0, 0.5)}


@pytest.fixture(params=LISTS.values(), ids=LISTS)
def listing(request, monkeypatch):
    """Pre-activations as a list, and all of them, whatever their number."""
    monkeypatch.setattr(pre_activations, "DENSE_SHARE", request.param)


def set_threshold(sae, total, weight):
    sae.threshold.total.fill_(total)
    sae.threshold.weight.fill_(weight)


def test_the_plan_knows_how_many_numbers_an_sae_has():
    for config in CONFIGS.values():
        numbers = sum(parameter.numel() for parameter in build_sae(D_MODEL, config).parameters())
        assert numbers == 2 * D_MODEL * D_SAE + config.vectors * D_SAE + D_MODEL


def test_every_architecture_has_its_case():
    assert list(CONFIGS) == list(ARCHITECTURES)
    for name, (section, _) in ARCHITECTURES.items():
        assert section().architecture == name


@pytest.mark.usefixtures("listing")
@pytest.mark.parametrize("dead_S", DEAD.values(), ids=DEAD)
@pytest.mark.parametrize("architecture", OTHERS)
def test_loss_and_every_gradient_equal_the_naive_definition(architecture, dead_S):
    sae, z_ND = random_sae_of(architecture), random_batch()
    total, gradients, latents_NS = naive(architecture, leaves(sae), z_ND, dead_S)
    losses = sae.losses(z_ND, dead_S, WARMUP)
    losses.total.backward()
    torch.testing.assert_close(losses.total, total, rtol=1e-10, atol=0)
    torch.testing.assert_close(losses.latents.dense(D_SAE), latents_NS, rtol=1e-10, atol=1e-12)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-8, atol=1e-11, msg=name)
        assert parameter.grad.any(), f"{name} gets no gradient"


@pytest.mark.usefixtures("listing")
@pytest.mark.parametrize("threshold", THRESHOLDS.values(), ids=THRESHOLDS)
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_what_a_batch_keeps_does_not_depend_on_the_threshold_so_far(architecture, threshold):
    sae, z_ND = random_sae_of(architecture), random_batch()
    set_threshold(sae, *threshold)
    total, gradients, _ = naive(architecture, leaves(sae), z_ND, dead())
    losses = sae.losses(z_ND, dead())
    losses.total.backward()
    assert (losses.latents.values_NK > 0).sum() == K * len(z_ND)
    torch.testing.assert_close(losses.total, total, rtol=1e-10, atol=0)
    torch.testing.assert_close(sae.W_enc.grad, gradients["W_enc"], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_list_and_all_encode_alike(architecture, monkeypatch):
    sae, z_ND = random_sae_of(architecture), random_batch()
    if hasattr(sae, "threshold") and architecture != "jumprelu":
        set_threshold(sae, 0.4, 0.5)
    encoded = []
    for share in LISTS.values():
        monkeypatch.setattr(pre_activations, "DENSE_SHARE", share)
        encoded.append((sae.encode(z_ND), sae(z_ND)))
    for one, other in zip(*encoded, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(sae.decode(encoded[0][0]), encoded[0][1])


@pytest.mark.usefixtures("listing")
@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_outside_training_the_same_latents_are_active(architecture):
    sae, z_ND = random_sae_of(architecture), random_batch()
    latents_NS = sae.losses(z_ND, dead()).latents.dense(D_SAE)
    torch.testing.assert_close(sae.encode(z_ND), latents_NS)


@pytest.mark.usefixtures("listing")
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_few_tokens_are_encoded_and_decoded(architecture, tokens):
    sae = random_sae_of(architecture)
    assert sae(random_batch(tokens=3)[:tokens]).shape == (tokens, D_MODEL)


@pytest.mark.usefixtures("listing")
@pytest.mark.parametrize("architecture", CONFIGS)
def test_where_nothing_is_active_the_bias_is_left(architecture):
    sae = random_sae_of(architecture)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    z_ND = random_batch()
    torch.testing.assert_close(sae(z_ND), sae.b_dec.expand_as(z_ND))
    losses = sae.losses(z_ND, dead())
    losses.total.backward()
    assert torch.isfinite(losses.total) and not losses.latents.fired(D_SAE).any()
    sae.after_step(losses.latents.activity(D_SAE), 1e-3)
    assert all(torch.isfinite(tensor).all() for tensor in sae.state_dict().values())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_sae_survives_being_saved(architecture, tmp_path):
    sae, z_ND = build_sae(D_MODEL, CONFIGS[architecture]), random_batch().float()
    sae.initialize(3)
    sae.after_step(sae.losses(z_ND, dead()).latents.activity(D_SAE), 1e-3)
    save_sae(sae, tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.config == sae.config
    assert loaded.state_dict().keys() == sae.state_dict().keys()
    assert torch.equal(loaded.encode(z_ND), sae.encode(z_ND))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_initial_weights_are_decided_by_the_seed_alone(architecture):
    one, other = build_sae(D_MODEL, CONFIGS[architecture]), random_sae_of(architecture).float()
    one.initialize(3)
    other.initialize(3)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, dict(other.named_parameters())[name])


# ---- thresholds of batches


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_the_threshold_is_right_from_the_first_step(architecture):
    sae, z_ND = random_sae_of(architecture), random_batch(tokens=200)
    for _ in range(3):
        losses = sae.losses(z_ND, dead())
        sae.after_step(losses.latents.activity(D_SAE), 1e-3)
        kept = losses.latents.values_NK[losses.latents.values_NK > 0]
        torch.testing.assert_close(sae.threshold.value, kept.min())
        assert (sae.encode(z_ND) > 0).sum(1).double().mean() == pytest.approx(K, abs=0.02)


def test_the_threshold_is_a_mean_over_steps_that_favors_the_last():
    threshold = random_sae_of("batchtopk").threshold
    for value in (1.0, 2.0, 4.0):
        threshold.update(torch.tensor(value, dtype=torch.float64))
    shares = [0.95**2, 0.95, 1.0]
    expected = sum(s * v for s, v in zip(shares, (1.0, 2.0, 4.0), strict=True)) / sum(shares)
    assert threshold.value.item() == pytest.approx(expected)


def test_parts_of_latents_amount_to_what_the_whole_amounts_to():
    values_NK, indices_NK = torch.tensor([[3.0, 0.0], [0.5, 1.0], [0.0, 0.0]]), torch.tensor([[1, 0], [2, 1], [3, 0]])
    whole = Latents(values_NK, indices_NK).activity(4)
    assert (whole.tokens, whole.active, whole.cutoff, whole.l0()) == (3, 3, 0.5, 1)
    assert whole.fired_S.tolist() == [False, True, True, False]
    for cut in range(4):
        first, rest = (Latents(values_NK[part], indices_NK[part]).activity(4) for part in (slice(cut), slice(cut, 3)))
        found = first + rest
        assert (found.tokens, found.active, found.cutoff) == (3, 3, 0.5)
        assert torch.equal(found.fired_S, whole.fired_S)


def test_a_token_is_encoded_alike_in_whatever_company():
    sae, z_ND = random_sae_of("batchtopk"), random_batch()
    sae.after_step(sae.losses(z_ND, dead()).latents.activity(D_SAE), 1e-3)
    torch.testing.assert_close(sae.encode(z_ND)[:1], sae.encode(z_ND[:1]))


def test_one_prefix_is_a_batchtopk_sae():
    z_ND = random_batch().float()
    plain = build_sae(D_MODEL, BatchTopKConfig(d_sae=D_SAE, k=K))
    nested = build_sae(D_MODEL, MatryoshkaConfig(d_sae=D_SAE, k=K, prefixes=(1.0,)))
    plain.initialize(0)
    nested.load_state_dict(plain.state_dict())
    torch.testing.assert_close(nested.losses(z_ND, dead()).total, plain.losses(z_ND, dead()).total)


def test_nested_dictionaries_have_the_sizes_stated():
    assert MatryoshkaConfig().sizes(65536) == (2048, 6144, 14336, 30720, 65536)
    assert MatryoshkaConfig().sizes(8) == (1, 2, 4, 8)


# ---- penalties


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_before_the_warm_up_there_is_no_penalty(architecture):
    sae, z_ND = random_sae_of(architecture), random_batch()
    without = sae.losses(z_ND, dead(), 0.0).total
    sae.penalty.log_weight.fill_(5.0)
    assert sae.losses(z_ND, dead(), 0.0).total == without
    assert sae.losses(z_ND, dead(), 1.0).total > without


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_a_given_coefficient_stays(architecture):
    config = CONFIGS[architecture].model_copy(update={"sparsity_coefficient": 0.25})
    sae = build_sae(D_MODEL, config)
    sae.initialize(0)
    sae.after_step(sae.losses(random_batch().float(), dead()).latents.activity(D_SAE), 1.0)
    assert sae.penalty.value.item() == pytest.approx(0.25)


@pytest.mark.parametrize(("active", "up"), [(2 * K, True), (K // 2, False)])
def test_the_penalty_grows_where_too_many_latents_are_active(active, up):
    penalty = random_sae_of("relu").penalty
    before = penalty.value.clone()
    penalty.update(torch.tensor(float(active), dtype=torch.float64), 1e-3)
    assert (penalty.value > before) == up
    assert (penalty.integral.exp() > START) == up


def test_at_the_number_asked_for_the_penalty_stays():
    penalty = random_sae_of("relu").penalty
    before = penalty.integral.exp()
    penalty.update(torch.tensor(float(K), dtype=torch.float64), 1e-3)
    assert penalty.value == penalty.integral.exp() == before


@pytest.mark.parametrize("architecture", CONFIGS)
def test_in_other_units_every_sae_does_to_raw_activations_what_it_did(architecture):
    sae, moved = random_sae_of(architecture), random_sae_of(architecture)
    for each in (sae, moved):
        if architecture in ("batchtopk", "matryoshka"):
            each.threshold.total.fill_(0.4)
            each.threshold.weight.fill_(0.8)
    factor, shift_D = 0.3, torch.linspace(-1, 1, D_MODEL, dtype=torch.float64)
    moved.change_inputs(factor, shift_D)
    y_ND = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z_ND = factor * y_ND + shift_D
    with torch.no_grad():
        torch.testing.assert_close(moved.encode(y_ND), sae.encode(z_ND) / factor, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moved(y_ND), (sae(z_ND) - shift_D) / factor, rtol=1e-9, atol=1e-9)
        assert sae.encode(z_ND).any()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_fitted_latents_are_the_same_ones_at_the_size_that_reconstructs_best(architecture):
    sae, fitted = random_sae_of(architecture), random_sae_of(architecture)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():  # what an SAE gives is near enough to what it was given for a factor above zero
        z_ND = 3 * sae(torch.randn(20, D_MODEL, generator=random, dtype=torch.float64))
    dead_S = torch.zeros(D_SAE, dtype=torch.bool)
    fitted.fit_latents(z_ND)
    with torch.no_grad():
        before, after = (one.losses(z_ND, dead_S).latents.dense(D_SAE) for one in (sae, fitted))
        factor = after.sum() / before.sum()
        assert (factor - 1).abs() > 0.01
        torch.testing.assert_close(after, factor * before, rtol=1e-9, atol=1e-12)
        e_ND = z_ND - after @ sae.W_dec - sae.b_dec
        assert abs((e_ND * (after @ sae.W_dec)).sum()) < 1e-9 * z_ND.square().sum()


def test_latents_are_not_fitted_to_a_batch_that_holds_nan():
    sae = random_sae_of("topk")
    before = sae.W_enc.detach().clone()
    sae.fit_latents(torch.full((4, D_MODEL), torch.nan, dtype=torch.float64))
    assert torch.equal(sae.W_enc, before)
