import pytest
import torch
from sae_cases import D_MODEL, D_SAE, K_AUX, WEIGHTS, K, copies, dead, naive_losses, random_batch, random_sae

from groupsae.config import TopKConfig
from groupsae.errors import ConfigError
from groupsae.saes import auxk
from groupsae.saes.base import Latents
from groupsae.saes.topk import TopKSAE

NONE_DEAD = dead()
FEW_DEAD = dead(3, 7)
MANY_DEAD = dead(*range(0, D_SAE, 3))


def gradients(sae, z_ND, dead_S):
    sae.zero_grad()
    sae.losses(z_ND, dead_S).total.backward()
    return {name: getattr(sae, name).grad.clone() for name in WEIGHTS}


@pytest.mark.parametrize("auxk_weight", [0.0, 1 / 32, 2.0])
@pytest.mark.parametrize("dead_S", [NONE_DEAD, FEW_DEAD, MANY_DEAD], ids=["none-dead", "few-dead", "many-dead"])
def test_loss_and_every_gradient_equal_the_naive_definition(dead_S, auxk_weight):
    sae, z_ND = random_sae(auxk_weight=auxk_weight), random_batch()
    weights = copies(sae)
    total, auxk, l0 = naive_losses(weights, z_ND, K, dead_S, auxk_weight)
    total.backward()
    losses = sae.losses(z_ND, dead_S)
    losses.total.backward()
    torch.testing.assert_close(losses.total, total, rtol=1e-10, atol=0)
    if auxk_weight:
        torch.testing.assert_close(losses.auxk, auxk.detach(), rtol=1e-10, atol=0)
    assert (losses.latents.values_NK > 0).sum().item() / len(z_ND) == l0
    for name in WEIGHTS:
        torch.testing.assert_close(getattr(sae, name).grad, weights[name].grad, rtol=1e-8, atol=1e-11, msg=name)


def test_float32_gradients_agree_with_the_naive_definition_in_float64():
    sae, z_ND = random_sae(), random_batch()
    weights = copies(sae)
    naive_losses(weights, z_ND, K, MANY_DEAD, 1 / 32)[0].backward()
    found = gradients(sae.float(), z_ND.float(), MANY_DEAD)
    for name in WEIGHTS:
        torch.testing.assert_close(found[name].double(), weights[name].grad, rtol=1e-3, atol=1e-5)


def test_error_and_variance_are_sums_over_the_batch():
    sae, z_ND = random_sae(), random_batch()
    losses = sae.losses(z_ND, NONE_DEAD)
    torch.testing.assert_close(losses.error, (sae(z_ND) - z_ND).square().sum().detach())
    torch.testing.assert_close(losses.variance, (z_ND - z_ND.mean(0)).square().sum())
    torch.testing.assert_close(losses.total, losses.error / losses.variance)


def test_dense_latents_are_the_k_largest_positive_pre_activations():
    sae, z_ND = random_sae(), random_batch()
    pre_NS = (z_ND - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    kth_N = pre_NS.sort(dim=1, descending=True).values[:, K - 1 : K]
    torch.testing.assert_close(sae.encode(z_ND), torch.where(pre_NS >= kth_N, pre_NS.clamp_min(0), 0.0))


def test_dense_and_sparse_decoding_agree():
    sae, z_ND = random_sae(), random_batch()
    torch.testing.assert_close(sae.decode(sae.encode(z_ND)), sae(z_ND))


def few_positive(sae):
    """Only latents 0 and 1 can fire; all others lie far below zero."""
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
        sae.b_enc[:2] = 100.0
    return sae


def test_where_fewer_than_k_are_positive_the_rest_do_not_count_as_active():
    losses = few_positive(random_sae()).losses(random_batch(), NONE_DEAD)
    assert ((losses.latents.values_NK > 0).sum(1) == 2).all()
    assert losses.latents.fired(D_SAE).tolist() == [True] * 2 + [False] * (D_SAE - 2)


def test_selected_latents_of_value_zero_get_no_gradient():
    found = gradients(few_positive(random_sae()), random_batch(), NONE_DEAD)
    for name in ("W_enc", "b_enc", "W_dec"):
        assert found[name][:2].abs().min() > 0
        assert not found[name][2:].any()


def test_fired_is_what_fired_on_any_token():
    sae, z_ND = random_sae(), random_batch()
    assert torch.equal(sae.encode_sparse(z_ND).fired(D_SAE), (sae.encode(z_ND) > 0).any(0))


def test_a_batch_of_no_tokens_encodes_to_nothing():
    sae = random_sae()
    assert sae(torch.zeros(0, D_MODEL, dtype=torch.float64)).shape == (0, D_MODEL)
    assert not sae.encode_sparse(torch.zeros(0, D_MODEL, dtype=torch.float64)).fired(D_SAE).any()


@pytest.mark.parametrize("z_ND", [random_batch(tokens=1), random_batch(tokens=1).expand(7, -1)], ids=["one", "equal"])
def test_a_batch_without_variance_has_a_finite_gradient_of_ordinary_size(z_ND):
    sae = random_sae().float()
    losses = sae.losses(z_ND.float(), MANY_DEAD)
    losses.total.backward()
    assert 0 < losses.total < 100
    assert all(torch.isfinite(getattr(sae, name).grad).all() for name in WEIGHTS)


# ---- the auxiliary loss


def aux_gradients(sae, z_ND, dead_S):
    """The gradients of the auxiliary loss alone."""
    with_aux = gradients(sae, z_ND, dead_S)
    without = gradients(sae, z_ND, NONE_DEAD)
    return {name: with_aux[name] - without[name] for name in WEIGHTS}


def test_the_auxiliary_loss_gives_no_gradient_to_live_latents():
    found = aux_gradients(random_sae(auxk_weight=1.0), random_batch(), MANY_DEAD)
    for name in ("W_enc", "b_enc", "W_dec"):
        assert found[name][~MANY_DEAD].abs().max() < 1e-12
        assert found[name][MANY_DEAD].abs().max() > 1e-6


def test_a_dead_latent_with_negative_pre_activations_gets_a_gradient():
    sae, z_ND = random_sae(auxk_weight=1.0), random_batch()
    with torch.no_grad():
        sae.b_enc[3] = -50.0
    assert sae.pre_activations(z_ND)[:, 3].max() < 0
    found = gradients(sae, z_ND, dead(3))
    assert all(found[name][3].abs().max() > 0 for name in ("W_enc", "b_enc", "W_dec"))


def test_a_dead_latent_with_negative_pre_activations_is_revived():
    sae, z_ND = random_sae(auxk_weight=1.0), random_batch()
    with torch.no_grad():
        sae.b_enc[3] = -5.0
    assert not sae.encode_sparse(z_ND).fired(D_SAE)[3]
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        losses = sae.losses(z_ND, dead(3))
        losses.total.backward()
        optimizer.step()
        if losses.latents.fired(D_SAE)[3]:
            return
    pytest.fail("the latent did not fire again")


def test_steps_on_the_auxiliary_loss_make_adding_its_reconstruction_lower_the_error():
    sae, z_ND = random_sae(auxk_weight=1.0), random_batch()
    dead_S = dead(*range(20, 20 + K_AUX))
    with torch.no_grad():
        sae.b_enc[dead_S] = -12.0
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.002)

    def residual():
        return (z_ND - sae(z_ND)).detach()

    def with_auxiliary():
        return residual() - sae.pre_activations(z_ND)[:, dead_S].detach() @ sae.W_dec[dead_S].detach()

    before_ND = residual()
    for _ in range(400):
        optimizer.zero_grad()
        for name, grad in aux_gradients(sae, z_ND, dead_S).items():
            if name != "b_dec":
                getattr(sae, name).grad = grad
        sae.b_dec.grad = None
        optimizer.step()
        sae.normalize_decoder()
    torch.testing.assert_close(residual(), before_ND)
    assert with_auxiliary().square().sum() < 0.9 * before_ND.square().sum()


@pytest.mark.parametrize(("latents", "share"), [((3, 7), 2 / K_AUX), (range(20), 1.0)])
def test_the_auxiliary_loss_is_scaled_by_the_share_of_k_aux_that_is_dead(latents, share):
    sae, z_ND = random_sae(), random_batch()
    dead_S = dead(*latents)
    losses = sae.losses(z_ND, dead_S)
    pre_NS = sae.pre_activations(z_ND).masked_fill(~dead_S, -torch.inf)
    values, chosen = pre_NS.topk(min(K_AUX, int(dead_S.sum())))
    e_hat_ND = torch.einsum("na,nad->nd", values, sae.W_dec[chosen])
    unscaled = (e_hat_ND - (z_ND - sae(z_ND))).square().sum() / losses.variance
    torch.testing.assert_close(losses.auxk, share * unscaled.detach())


def test_dead_latents_are_decoded_alike_by_gathering_and_by_a_dense_product():
    random, results = torch.Generator().manual_seed(0), []
    places_NA = torch.rand(7, 20, generator=random).topk(5).indices
    start = [torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((20, 4), (7, 5), (7, 4))]
    for dense in (False, True):
        W_ZD, values_NA = (tensor.clone().requires_grad_() for tensor in start[:2])
        e_hat_ND = auxk._decode(W_ZD, Latents(values_NA, places_NA), dense)
        (e_hat_ND - start[2]).square().sum().backward()
        results.append((e_hat_ND, W_ZD.grad, values_NA.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_without_dead_latents_the_auxiliary_loss_is_zero():
    losses = random_sae().losses(random_batch(), NONE_DEAD)
    assert losses.auxk == 0


# ---- weights


def test_the_encoder_starts_as_the_transpose_of_the_normalized_decoder():
    sae = TopKSAE(D_MODEL, TopKConfig(d_sae=D_SAE, k=K))
    sae.initialize(3)
    assert torch.equal(sae.W_enc, sae.W_dec)
    torch.testing.assert_close(sae.W_enc.norm(dim=1), torch.ones(D_SAE))
    assert not sae.b_enc.any() and not sae.b_dec.any()


def test_initial_weights_are_decided_by_the_seed_alone():
    def weights(seed):
        torch.manual_seed(int(torch.randint(10**6, ())))
        sae = TopKSAE(D_MODEL, TopKConfig(d_sae=D_SAE, k=K))
        sae.initialize(seed)
        return sae.W_dec

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_initializing_does_not_touch_the_global_generator():
    before = torch.get_rng_state()
    TopKSAE(D_MODEL, TopKConfig(d_sae=D_SAE, k=K)).initialize(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_normalizing_gives_every_decoder_row_unit_norm_and_keeps_its_direction():
    sae = random_sae()
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.1, 10, D_SAE)[:, None])
    before = sae.W_dec.detach().clone()
    sae.normalize_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE, dtype=torch.float64))
    torch.testing.assert_close(torch.cosine_similarity(before, sae.W_dec), torch.ones(D_SAE, dtype=torch.float64))


def test_only_the_gradient_component_along_the_row_is_removed():
    sae = random_sae()
    before = gradients(sae, random_batch(), MANY_DEAD)["W_dec"]
    assert (before * sae.W_dec).sum(1).abs().max() > 1e-4
    sae.project_decoder_gradient()
    after = sae.W_dec.grad
    assert (after * sae.W_dec).sum(1).abs().max() < 1e-12
    removed = before - after
    along = (removed * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
    torch.testing.assert_close(removed, along.detach())


def test_more_kept_latents_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="k = 41 is more than the 40 latents"):
        TopKSAE(D_MODEL, TopKConfig(d_sae=40, k=41))


def test_expansion_gives_the_width():
    assert TopKSAE(D_MODEL, TopKConfig(expansion=2.5, k=K)).d_sae == 40
