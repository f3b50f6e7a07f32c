"""What one optimizer step does."""

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from training_cases import SAE, TRAIN, make_source

from groupsae.activations.scale import measure_scales
from groupsae.config import TopKConfig
from groupsae.saes.base import Latents
from groupsae.training.dead import DeadLatents
from groupsae.training.group import GroupInTraining
from groupsae.training.optim import decay, learning_rate

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def make_group(layers=(0, 2), seed=0, train=TRAIN, sae=SAE, **options):
    source = make_source(**options)
    group = tuple(f"layers.{layer}" for layer in layers)
    return GroupInTraining(group, measure_scales(source, 300), source.d_model, sae, train, seed)


def batch(count=64):
    return make_source().read(range(-(-count // 16)))[:, :count]


@pytest.mark.parametrize(("d_sae", "rate"), [(12288, 2.309401e-4), (16384, 2e-4), (32768, 1.414214e-4)])
def test_the_learning_rate_falls_with_the_root_of_the_width(d_sae, rate):
    assert learning_rate(d_sae) == pytest.approx(rate, rel=1e-6)


def test_the_rule_gives_the_learning_rate_unless_one_is_given():
    assert make_group(train=TRAIN.model_copy(update={"learning_rate": None})).rate == learning_rate(24)
    assert make_group().rate == 3e-3


@pytest.mark.parametrize(
    ("progress", "share", "factor"),
    [(0, 0.2, 1), (0.8, 0.2, 1), (0.9, 0.2, 0.5), (1, 0.2, 0), (0.999, 0, 1), (0, 1, 1), (0.25, 1, 0.75)],
)
def test_the_rate_decays_on_a_straight_line_over_the_last_share(progress, share, factor):
    assert decay(progress, share) == pytest.approx(factor, abs=1e-12)


def test_weights_start_from_the_seed_and_the_group():
    start = make_group().sae.W_dec
    assert torch.equal(start, make_group().sae.W_dec)
    assert not torch.equal(start, make_group(seed=1).sae.W_dec)
    assert not torch.equal(start, make_group((1, 2)).sae.W_dec)


def test_a_step_uses_the_decayed_rate():
    group = make_group()
    group.step(batch(), 0, 0.95)
    assert group.optimizer.param_groups[0]["lr"] == pytest.approx(3e-3 * 0.25)


@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 100.0])
def test_steps_equal_clipping_projecting_adam_and_normalising_by_hand(clip_norm):
    group = make_group(train=TRAIN.model_copy(update={"clip_norm": clip_norm}))
    twin = make_group()
    moments = {name: [torch.zeros_like(getattr(twin.sae, name)) for _ in range(2)] for name in NAMES}
    x_LND = batch(192)
    for step in range(3):
        x_step = x_LND[:, step * 64 : (step + 1) * 64]
        group.step(x_step, step, 0.0)
        layers_N = twin.draw_layers(64, step)
        z_ND = torch.stack(
            [twin.scales.scale_L[layer] * x_step[layer, token] for token, layer in enumerate(layers_N.tolist())]
        )
        twin.sae.zero_grad()
        twin.sae.losses(z_ND, torch.zeros(24, dtype=torch.bool)).total.backward()
        clip_grad_norm_(twin.sae.parameters(), clip_norm)
        with torch.no_grad():
            W_dec, grad = twin.sae.W_dec, twin.sae.W_dec.grad
            grad -= (grad * W_dec).sum(1, keepdim=True) * W_dec
            for name in NAMES:
                parameter, (m, v) = getattr(twin.sae, name), moments[name]
                m.lerp_(parameter.grad, 0.1)
                v.lerp_(parameter.grad**2, 0.001)
                m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                parameter -= 3e-3 * m_hat / (v_hat.sqrt() + 1e-8)
            W_dec /= W_dec.norm(dim=1, keepdim=True)
    for name in NAMES:
        torch.testing.assert_close(getattr(group.sae, name), getattr(twin.sae, name), rtol=1e-4, atol=1e-5, msg=name)


def test_decoder_rows_keep_unit_norm():
    group = make_group(train=TRAIN.model_copy(update={"learning_rate": 0.1}))
    for step in range(5):
        group.step(batch(), step, 0.0)
        torch.testing.assert_close(group.sae.W_dec.norm(dim=1), torch.ones(24))


def test_gradients_do_not_accumulate_from_step_to_step():
    group = make_group()
    group.step(batch(), 0, 0.0)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in group.sae.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_in_half_precision_train_weights_in_float32(dtype):
    group = make_group()
    group.step(batch().to(dtype), 0, 0.0)
    assert {parameter.dtype for parameter in group.sae.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in group.sae.parameters())


# ---- drawing layers


def test_layers_are_drawn_uniformly():
    group = make_group((0, 1, 3), num_layers=4)
    drawn = torch.cat([group.draw_layers(1000, step) for step in range(30)])
    counts = drawn.bincount(minlength=4)
    assert counts[2] == 0
    assert ((counts[[0, 1, 3]] - 10_000).abs() < 5 * 82).all()


def test_each_token_draws_its_own_layer_at_each_step():
    group = make_group()
    one, other = group.draw_layers(1000, 0), group.draw_layers(1000, 1)
    assert set(one.tolist()) == {0, 2}
    agree = (one == other).double().mean()
    neighbours = (one[1:] == one[:-1]).double().mean()
    assert 0.4 < agree < 0.6
    assert 0.4 < neighbours < 0.6
    assert torch.equal(one, make_group().draw_layers(1000, 0))


def test_groups_and_seeds_draw_independently():
    pair = make_group((0, 2)).draw_layers(1000, 0)
    other_pair = make_group((1, 2)).draw_layers(1000, 0)
    other_seed = make_group((0, 2), seed=1).draw_layers(1000, 0)
    assert 0.4 < ((pair == 2) == (other_pair == 2)).double().mean() < 0.6
    assert 0.4 < (pair == other_seed).double().mean() < 0.6


def test_a_draw_does_not_depend_on_where_the_source_has_the_layer():
    class Reversed:
        hookpoints = ("layers.2", "layers.1", "layers.0")
        d_model, num_rows, row_tokens, batch_rows, device = 8, 40, 16, 8, torch.device("cpu")

        def read(self, rows):
            return make_source().read(rows).flip(0)

    straight = make_group()
    mirrored = GroupInTraining(("layers.0", "layers.2"), measure_scales(Reversed(), 300), 8, SAE, TRAIN, 0)
    straight.step(batch(), 0, 0.0)
    mirrored.step(batch().flip(0), 0, 0.0)
    assert torch.equal(straight.draw_layers(99, 0), 2 - mirrored.draw_layers(99, 0))
    assert torch.equal(straight.sae.W_dec, mirrored.sae.W_dec)


def test_the_sae_sees_each_token_at_the_layer_drawn_for_it_in_that_layers_scale_and_centre(monkeypatch):
    source = make_source()
    scales = measure_scales(source, 300, centre=True)
    group = GroupInTraining(("layers.0", "layers.2"), scales, 8, SAE, TRAIN, 0)
    seen = []
    losses = group.sae.losses
    monkeypatch.setattr(group.sae, "losses", lambda z_ND, *rest: seen.append(z_ND) or losses(z_ND, *rest))
    x_LND = batch()
    group.step(x_LND, 7, 0.0)
    for token, layer in enumerate(group.draw_layers(64, 7).tolist()):
        z_D = (x_LND[layer, token] - scales.centre_LD[layer]) * scales.scale_L[layer]
        torch.testing.assert_close(seen[0][token], z_D)


# ---- dead latents


def latents(*pairs):
    """One token's latents, given as (number, value)."""
    return Latents(torch.tensor([[value for _, value in pairs]]), torch.tensor([[number for number, _ in pairs]]))


def test_a_latent_is_dead_once_it_has_been_silent_for_the_given_tokens():
    counter = DeadLatents(3, 2, torch.device("cpu"))
    counter.update(latents((0, 1.0), (2, 1.0)))
    assert counter.mask_S.tolist() == [False, False, False]
    counter.update(latents((0, 1.0)))
    assert counter.silent_S.tolist() == [0, 2, 1]
    assert counter.mask_S.tolist() == [False, True, False]
    counter.update(latents((1, 0.5)))
    assert counter.mask_S.tolist() == [False, False, True]


def test_a_selected_latent_of_value_zero_has_not_fired():
    counter = DeadLatents(3, 1, torch.device("cpu"))
    counter.update(latents((0, 1.0), (1, 0.0)))
    assert counter.silent_S.tolist() == [0, 1, 1]


def test_silence_is_counted_in_tokens():
    counter = DeadLatents(2, 10, torch.device("cpu"))
    counter.update(Latents(torch.ones(7, 1), torch.zeros(7, 1, dtype=torch.int64)))
    assert counter.silent_S.tolist() == [0, 7]


def test_latents_that_are_dead_before_a_step_get_the_auxiliary_loss():
    group = make_group(sae=TopKConfig(d_sae=24, k=1, dead_after_tokens=1))
    group.step(batch(16), 0, 0.0)
    assert group.meter.read()["auxk"] == 0
    group.step(batch(16), 1, 0.0)
    assert group.meter.read()["auxk"] > 0
