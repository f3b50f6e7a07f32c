"""What one optimizer step does."""

import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import SAE, TRAIN, make_source

from groupsae.activations.shuffle import BufferLayout, ShuffledStream
from groupsae.config import TopKConfig
from groupsae.saes.base import Latents
from groupsae.training import precision
from groupsae.training.dead import DeadLatents
from groupsae.training.fit import measure_scales
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.optim import decay, learning_rate

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def make_group(layers=(0, 2), seed=0, train=TRAIN, sae=SAE, **options):
    source = make_source(**options)
    group = tuple(f"layers.{layer}" for layer in layers)
    return GroupTrainer(group, measure_scales(source, 300), source.d_model, sae, train, seed)


def batch(count=64):
    """x_ND of `count` tokens, and the layer of the group of two that each is of."""
    x_LND = make_source().read(range(-(-count // 16)))[[0, 2], :count]
    layers_N = torch.randint(2, (count,), generator=torch.Generator().manual_seed(0))
    return x_LND[layers_N, torch.arange(count)], layers_N


def stream(num_tokens=640, every_layer=False, group=("layers.0", "layers.2")):
    source = make_source()
    return ShuffledStream(source, num_tokens, BufferLayout.of([group], every_layer=every_layer), 64, 128, 0)


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
    group.step(*batch(), 0.95)
    assert group.optimizer.param_groups[0]["lr"] == pytest.approx(3e-3 * 0.25)


def test_the_rate_rises_on_a_straight_line_over_the_first_share_and_is_never_zero():
    train = TRAIN.model_copy(update={"warmup_share": 0.5})
    group, count = make_group(train=train), len(batch()[0])
    for progress in (0.0, 0.25, 0.6):
        group.step(*batch(), progress)
        expected = min(1.0, (progress + count / train.num_tokens) / 0.5)
        assert group.optimizer.param_groups[0]["lr"] == pytest.approx(3e-3 * expected)


def test_the_first_step_fits_the_encoder_to_its_tokens_once_and_where_asked():
    """At a rate of zero nothing else moves."""
    still = {"learning_rate": 1e-30}
    group = make_group(train=TRAIN.model_copy(update=still | {"rescale_encoder_init": True}))
    before = group.sae.W_enc.detach().clone()
    group.step(*batch(), 0.0)
    factors_SD = group.sae.W_enc / before
    torch.testing.assert_close(factors_SD, factors_SD[:1, :1].expand_as(factors_SD), rtol=1e-4, atol=0)
    assert (factors_SD - 1).abs().min() > 0.05
    once = group.sae.W_enc.detach().clone()
    group.step(*batch(), 0.1)
    assert torch.equal(group.sae.W_enc, once)
    published = make_group(train=TRAIN.model_copy(update=still))
    published.step(*batch(), 0.0)
    assert torch.equal(published.sae.W_enc, before)


@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 100.0])
def test_steps_equal_clipping_projecting_adam_and_normalizing_by_hand(clip_norm):
    group = make_group(train=TRAIN.model_copy(update={"clip_norm": clip_norm}))
    twin = make_group()
    moments = {name: [torch.zeros_like(getattr(twin.sae, name)) for _ in range(2)] for name in NAMES}
    x_all_ND, layers_all_N = batch(192)
    for step in range(3):
        now = slice(step * 64, (step + 1) * 64)
        x_ND, layers_N = x_all_ND[now], layers_all_N[now]
        group.step(x_ND, layers_N, 0.0)
        z_ND = torch.stack(
            [twin.scales.scale_L[layer] * x_D for layer, x_D in zip(layers_N.tolist(), x_ND, strict=True)]
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
    for _ in range(5):
        group.step(*batch(), 0.0)
        torch.testing.assert_close(group.sae.W_dec.norm(dim=1), torch.ones(24))


def test_gradients_do_not_accumulate_from_step_to_step():
    group = make_group()
    group.step(*batch(), 0.0)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in group.sae.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_in_half_precision_train_weights_in_float32(dtype):
    group = make_group()
    x_ND, layers_N = batch()
    group.step(x_ND.to(dtype), layers_N, 0.0)
    assert {parameter.dtype for parameter in group.sae.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in group.sae.parameters())


WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "bincount", "unique")
"""Operations that on a GPU wait for it: a tensor's content becomes Python's or a shape, or Python's a tensor's."""


class Waits(TorchDispatchMode):
    """Notes such operations, each by the file of the package that asks for it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in WAITING or by_mask:
            files = [Path(frame.filename) for frame in traceback.extract_stack()]
            self.seen.append((name, next(file.name for file in reversed(files) if "groupsae" in file.parts[:-1])))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("every_layer", [False, True])
def test_a_step_waits_for_the_device_once_to_list_the_dead(every_layer):
    train = TRAIN.model_copy(update={"layers_per_token": "all" if every_layer else 1})
    group = make_group(train=train)
    batches = iter(stream(every_layer=every_layer).batches())
    group.take(next(batches)[1], 0)
    with Waits() as waits:
        group.take(next(batches)[1], 1)
    on_cpus_only = ("_local_scalar_dense", "optim.py")  # clipping asks there whether it may be left out
    assert waits.seen == [("nonzero", "auxk.py"), on_cpus_only] * group.passes


# ---- what a group takes of the stream


def taken(group, every_layer, **options):
    """(x, layers, progress) of every step that a group takes on a stream."""
    steps = []

    def step(x_ND, layers_N, progress, number):
        steps.append((x_ND, layers_N, progress))
        group.schedule.advance(len(x_ND), torch.zeros(()))

    group.step = step
    for _, given in stream(every_layer=every_layer, **options).batches():
        group.take(given, 0)
    return steps


def test_a_group_takes_one_step_of_one_layer_per_token_for_each_batch():
    steps = taken(make_group(), False)
    assert sum(len(x_ND) for x_ND, *_ in steps) == 640
    assert all(0.25 < layers_N.double().mean() < 0.75 for _, layers_N, *_ in steps)


def test_with_every_layer_a_group_of_two_takes_two_steps_for_each_batch_and_needs_half_the_tokens():
    train = TRAIN.model_copy(update={"layers_per_token": "all"})
    group = make_group(train=train)
    assert (group.passes, group.tokens_needed) == (2, 500)
    assert not group.finished
    steps = taken(group, True, num_tokens=500)
    assert group.finished
    assert sum(len(x_ND) for x_ND, *_ in steps) == 1000
    progress = [step[2] for step in steps]
    assert progress[0] == 0 and progress == sorted(progress) and progress[-1] < 1
    assert progress[1] == len(steps[0][0]) / 1000


def test_a_group_sees_exactly_the_tokens_asked_for_even_if_they_do_not_divide_by_its_layers():
    train = TRAIN.model_copy(update={"layers_per_token": "all", "num_tokens": 333})
    group = make_group(train=train)
    assert group.tokens_needed == 167
    assert sum(len(x_ND) for x_ND, *_ in taken(group, True, num_tokens=200)) == 333


@pytest.mark.parametrize(("num_tokens", "text"), [(333 * 2, 333), (250, 200)])
def test_with_every_layer_each_token_is_seen_once_at_each_though_the_last_block_is_cut(num_tokens, text):
    """The stream has blocks of 128 tokens, and the group's tokens end within one; so may the stream's."""
    train = TRAIN.model_copy(update={"layers_per_token": "all", "num_tokens": num_tokens})
    steps = taken(make_group(train=train), True, num_tokens=text)
    seen = Counter(
        (int(layer), x_D.numpy().tobytes())
        for x_ND, layers_N, *_ in steps
        for x_D, layer in zip(x_ND, layers_N, strict=True)
    )
    assert len(seen) == num_tokens and set(seen.values()) == {1}
    source = make_source()
    rows_LNB = [[x_D.numpy().tobytes() for x_D in x_ND] for x_ND in source.read(range(source.num_rows))[[0, 2]]]
    token = {(layer, row): number for layer, rows in enumerate(rows_LNB) for number, row in enumerate(rows)}
    at_layer = [{token[one] for one in seen if one[0] == layer} for layer in (0, 1)]
    assert at_layer[0] == at_layer[1] and len(at_layer[0]) == num_tokens // 2


def test_the_logged_fvu_is_about_each_layers_own_mean():
    """Without a center, layers' means differ: a common mean would make the FVU smaller than the layers' own."""
    source = make_source()
    scales = measure_scales(source, 300)
    group = GroupTrainer(("layers.0", "layers.2"), scales, source.d_model, SAE, TRAIN, 0)
    x_ND, layers_N = batch(128)
    z_ND = scales.at(group.group).normalize(x_ND, layers_N)
    error = (z_ND - group.sae(z_ND)).square().sum()
    parts = [z_ND[layers_N == layer] for layer in (0, 1)]
    own = sum(part.var(0, correction=1).sum() * len(part) for part in parts)
    together = (z_ND - z_ND.mean(0)).square().sum()
    group.step(x_ND, layers_N, 0.0)
    found = group.meter.read()["fvu"]
    assert found == pytest.approx((error / own).item(), rel=1e-4)
    assert found > 1.05 * (error / together).item()


def test_layers_of_one_token_each_have_the_batchs_variance():
    group = make_group()
    x_ND, _ = batch(2)
    group.step(x_ND, torch.tensor([0, 1]), 0.0)
    assert 0 < group.meter.read()["fvu"] < 100


def test_the_sae_sees_each_token_in_the_scale_and_center_of_its_layer(monkeypatch):
    source = make_source()
    scales = measure_scales(source, 300, center=True)
    for layers in ((0, 2), (1,)):
        group = GroupTrainer(tuple(f"layers.{layer}" for layer in layers), scales, 8, SAE, TRAIN, 0)
        seen = []
        losses = group.sae.losses
        watched = lambda z_ND, *rest, seen=seen, losses=losses: seen.append(z_ND) or losses(z_ND, *rest)  # noqa: E731
        monkeypatch.setattr(group.sae, "losses", watched)
        x_ND, layers_N = batch()
        layers_N = layers_N % len(layers)
        group.step(x_ND, layers_N, 0.0)
        for x_D, layer, z_D in zip(x_ND, layers_N.tolist(), seen[0], strict=True):
            expected_D = (x_D - scales.center_LD[layers[layer]]) * scales.scale_L[layers[layer]]
            torch.testing.assert_close(z_D, expected_D)


# ---- precision


def test_bf16_rounds_the_encoders_product_only_and_trains_nearly_alike():
    plain, rounded = make_group(), make_group(train=TRAIN.model_copy(update={"precision": "bf16"}))
    rounded.sae.product_dtype = torch.bfloat16
    for _ in range(5):
        plain.step(*batch(), 0.0)
        rounded.step(*batch(), 0.0)
    assert {parameter.dtype for parameter in rounded.sae.parameters()} == {torch.float32}
    assert not torch.equal(plain.sae.W_enc, rounded.sae.W_enc)
    torch.testing.assert_close(rounded.meter.read()["fvu"], plain.meter.read()["fvu"], rtol=0.02, atol=0)
    assert rounded.trained().product_dtype is None


def test_bf16_is_float32_where_the_hardware_lacks_it(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    assert make_group(train=TRAIN.model_copy(update={"precision": "bf16"})).sae.product_dtype is None
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    assert make_group(train=TRAIN.model_copy(update={"precision": "bf16"})).sae.product_dtype == torch.bfloat16
    assert make_group().sae.product_dtype is None


# ---- dead latents


def activity(*pairs):
    """That of one token's latents of three, given as (number, value)."""
    values_NK, indices_NK = ([[pair[place] for pair in pairs]] for place in (1, 0))
    return Latents(torch.tensor(values_NK), torch.tensor(indices_NK)).activity(3)


def test_a_latent_is_dead_once_it_has_been_silent_for_the_given_tokens():
    counter = DeadLatents(3, 2, torch.device("cpu"))
    counter.update(activity((0, 1.0), (2, 1.0)))
    assert counter.mask_S.tolist() == [False, False, False]
    counter.update(activity((0, 1.0)))
    assert counter.silent_S.tolist() == [0, 2, 1]
    assert counter.mask_S.tolist() == [False, True, False]
    counter.update(activity((1, 0.5)))
    assert counter.mask_S.tolist() == [False, False, True]


def test_a_selected_latent_of_value_zero_has_not_fired():
    counter = DeadLatents(3, 1, torch.device("cpu"))
    counter.update(activity((0, 1.0), (1, 0.0)))
    assert counter.silent_S.tolist() == [0, 1, 1]


def test_silence_is_counted_in_tokens():
    counter = DeadLatents(2, 10, torch.device("cpu"))
    counter.update(Latents(torch.ones(7, 1), torch.zeros(7, 1, dtype=torch.int64)).activity(2))
    assert counter.silent_S.tolist() == [0, 7]


def test_latents_that_are_dead_before_a_step_get_the_auxiliary_loss():
    group = make_group(sae=TopKConfig(d_sae=24, k=1, dead_after_tokens=1))
    group.step(*batch(16), 0.0)
    assert group.meter.read()["auxk"] == 0
    group.step(*batch(16), 0.0)
    assert group.meter.read()["auxk"] > 0


def test_a_frozen_decoder_stays_as_it_was_drawn_while_the_rest_learns():
    frozen, free = (make_group(train=TRAIN.model_copy(update={"freeze_decoder": value})) for value in (True, False))
    before = frozen.sae.W_dec.detach().clone(), frozen.sae.W_enc.detach().clone()
    for one in (frozen, free):
        for _ in range(4):
            one.step(*batch(), progress=0.0)
    torch.testing.assert_close(frozen.sae.W_dec, before[0], atol=1e-6, rtol=0)
    assert not torch.allclose(free.sae.W_dec, before[0], atol=1e-3)
    assert not torch.allclose(frozen.sae.W_enc, before[1], atol=1e-3)
