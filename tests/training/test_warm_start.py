"""Where first weights come from, what they do, and that training goes on from them exactly."""

import copy
from dataclasses import replace

import pytest
import torch
from training_cases import SAE, TRAIN, Stop, equal, make_source, run, stop_after, weights

from groupsae.config import TopKConfig, WarmStartConfig
from groupsae.errors import ConfigError, PartitionError
from groupsae.partition import Partition
from groupsae.saes.registry import ARCHITECTURES
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.training.fit import measure_scales
from groupsae.training.trainer import TrainJob, train, train_together
from groupsae.training.warm_start import WarmStart

LAYERS = ("layers.0", "layers.1", "layers.2")
SINGLE = Partition.singletons(LAYERS)
PAIRS = Partition((("layers.0", "layers.2"), ("layers.1",)))


@pytest.fixture(scope="module")
def base():
    return run(SINGLE.groups).suite(SINGLE)


@pytest.fixture(scope="module")
def shared():
    return run(PAIRS.groups).suite(PAIRS)


def scales(center=False, **options):
    return measure_scales(make_source(**options), 300, center=center)


def state(sae):
    return {name: tensor.clone() for name, tensor in sae.state_dict().items()}


def warm(start, **options):
    return run(SINGLE.groups, starts=start.starts(LAYERS, start.suite.scales), **options)


def in_float64(suite, hookpoint, sae=None, scales=None):
    """The reconstruction of raw activations as a function, all of it in float64."""
    scale, center_D = (scales or suite.scales).of(hookpoint)
    sae = copy.deepcopy(sae or suite[hookpoint].sae).double()
    return lambda x_ND: sae((x_ND.double() - center_D.double()) * scale) / scale + center_D.double()


# ---- which SAE


@pytest.mark.parametrize(
    ("direction", "sources"),
    [
        ("forward", (None, "layers.0", "layers.1")),
        ("backward", ("layers.1", "layers.2", None)),
        ("group", LAYERS),
    ],
)
def test_a_direction_names_the_sae_of_the_layer_before_after_or_of_its_own(base, direction, sources):
    assert WarmStart(base, direction).sources(LAYERS) == dict(zip(LAYERS, sources, strict=True))


def test_layers_left_out_of_the_source_start_from_those_beside_them(base):
    odd = Suite(Partition.singletons(("layers.1",)), {"layers.1": base.saes["layers.1"]}, base.scales)
    assert WarmStart(odd, "backward").sources(("layers.0", "layers.2")) == {"layers.0": "layers.1", "layers.2": None}
    with pytest.raises(PartitionError, match=r"no SAE of layers\.2 \(for layers\.1\); it serves layers\.1"):
        WarmStart(odd, "backward").sources(LAYERS)


def test_a_layer_of_a_group_starts_from_the_groups_sae(shared):
    starts = WarmStart(shared, "group").starts(LAYERS, shared.scales)
    assert equal(state(starts["layers.2"].sae), state(shared.saes["layers.0+2"]))
    assert starts["layers.2"].origin.group == "layers.0+2"
    assert starts["layers.2"].origin.hookpoint == "layers.2"


# ---- the weights


@pytest.mark.parametrize("direction", ["forward", "backward", "group"])
def test_under_the_same_scales_an_sae_keeps_its_function_of_normalized_activations(base, direction):
    start = WarmStart(base, direction)
    for hookpoint, found in start.starts(LAYERS, base.scales).items():
        assert equal(state(found.sae), state(base[start.sources(LAYERS)[hookpoint]].sae))


@pytest.mark.parametrize("center", [False, True])
def test_under_other_scales_an_sae_of_the_same_layer_keeps_its_function_of_raw_activations(base, center):
    torch.manual_seed(0)
    new = Scales(
        LAYERS, base.scales.scale_L * torch.tensor([0.5, 2, 3]), torch.randn(3, 8) if center else 0 * torch.ones(3, 8)
    )
    for hookpoint, found in WarmStart(base, "group").starts(LAYERS, new).items():
        bound, sae = base[hookpoint], copy.deepcopy(base[hookpoint].sae).double()
        # In float64 throughout, so that no near tie between latents is broken otherwise.
        scale, center_D = base.scales.of(hookpoint)
        new_scale, new_center_D = new.of(hookpoint)
        sae.change_inputs(scale / new_scale, scale * (new_center_D.double() - center_D.double()))
        x_ND = make_source().read(range(8))[LAYERS.index(hookpoint)]
        before = in_float64(base, hookpoint)(x_ND)
        torch.testing.assert_close(in_float64(base, hookpoint, sae, new)(x_ND), before, rtol=1e-10, atol=1e-10)
        for name, tensor in found.sae.state_dict().items():
            torch.testing.assert_close(tensor, sae.state_dict()[name].float(), rtol=1e-5, atol=1e-6)
        assert torch.equal(found.sae.W_dec, bound.sae.W_dec)


def test_a_source_is_left_as_it_was(base):
    before = {name: state(sae) for name, sae in base.saes.items()}
    other = Scales(LAYERS, 2 * base.scales.scale_L, base.scales.center_LD + 1)
    WarmStart(base, "backward").starts(LAYERS, other)
    warm(WarmStart(base, "backward"))
    assert all(equal(before[name], state(sae)) for name, sae in base.saes.items())


# ---- training


def test_forward_the_first_layer_is_trained_from_scratch_to_the_bit(base):
    trained = warm(WarmStart(base, "forward"))
    assert equal(state(trained.saes["layers.0"]), state(base.saes["layers.0"]))
    assert not torch.equal(trained.saes["layers.1"].W_dec, base.saes["layers.1"].W_dec)
    assert trained.saes["layers.0"].lineage.origin is None


def test_a_warm_start_begins_where_the_source_ended(base):
    short = TRAIN.model_copy(update={"num_tokens": 1, "batch_tokens": 1, "learning_rate": 1e-12})
    trained = warm(WarmStart(base, "group"), train=short)
    for name, sae in trained.saes.items():
        torch.testing.assert_close(sae.W_dec, base.saes[name].W_dec, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("own", "rate"), [(None, 1e-3), (5e-4, 5e-4)])
def test_a_warm_start_learns_at_a_third_of_the_rate_or_at_its_own(base, own, rate):
    settings = TRAIN.model_copy(update={"warm_start": WarmStartConfig(learning_rate=own), "decay_share": 0.0})
    records = []
    warm(WarmStart(base, "forward"), train=settings, log=records.append)
    rates = {name: values["learning_rate"] for name, values in records[-1]["groups"].items()}
    assert rates == {"layers.0": 3e-3, "layers.1": pytest.approx(rate), "layers.2": pytest.approx(rate)}


@pytest.mark.parametrize("steps", [1, 6, 13])
def test_going_on_with_a_warm_start_equals_never_having_stopped(base, tmp_path, steps):
    start = WarmStart(base, "backward")
    whole = weights(warm(start))
    with pytest.raises(Stop):
        warm(start, folder=tmp_path, progress=stop_after(steps))
    assert equal(weights(warm(start, folder=tmp_path)), whole)


def test_the_digest_follows_weights_direction_and_scales_of_the_source(base, shared):
    digest = WarmStart(base, "backward").digest(LAYERS)
    assert digest == WarmStart(base, "backward", "elsewhere", "baseline").digest(LAYERS)
    moved = Suite(base.partition, base.saes, replace(base.scales, scale_L=2 * base.scales.scale_L))
    changed = copy.deepcopy(base.saes)
    changed["layers.2"].b_dec[0] += 1
    others = [
        WarmStart(base, "forward"),
        WarmStart(shared, "backward"),
        WarmStart(moved, "backward"),
        WarmStart(Suite(base.partition, changed, base.scales), "backward"),
    ]
    assert len({digest, *(other.digest(LAYERS) for other in others)}) == 5


def test_several_saes_of_one_layer_train_in_one_pass_each_as_if_alone(base):
    start = WarmStart(base, "backward").starts(LAYERS, base.scales)["layers.0"]
    shorter = TRAIN.model_copy(update={"num_tokens": 500})
    jobs = {
        "warm": TrainJob(("layers.0",), TRAIN, start),
        "scratch": TrainJob(("layers.0",), TRAIN),
        "short": TrainJob(("layers.0",), shorter),
    }
    together = train_together(make_source(), jobs, base.scales, SAE, TRAIN, seed=0, buffer_tokens=128)
    alone = run(SINGLE.groups[:1], train=shorter)
    assert equal(state(together.saes["scratch"]), state(base.saes["layers.0"]))
    assert equal(state(together.saes["short"]), state(alone.saes["layers.0"]))
    assert equal(state(together.saes["warm"]), state(warm(WarmStart(base, "backward")).saes["layers.0"]))
    assert [sae.lineage.tokens for sae in together.saes.values()] == [1000, 1000, 500]


def test_the_api_starts_from_a_suite(base):
    suite = train(make_source(), SINGLE, SAE, TRAIN, buffer_tokens=128, start=WarmStart(base, "backward"))
    assert equal(state(suite.saes["layers.0"]), state(warm(WarmStart(base, "backward")).saes["layers.0"]))


# ---- lineage


def test_the_lineage_is_saved_with_the_sae_and_counts_all_tokens(base, tmp_path):
    trained = warm(WarmStart(base, "backward", "runs/base", "baseline"))
    trained.suite(SINGLE).save(tmp_path)
    again = Suite.load(tmp_path)
    origin = again.saes["layers.0"].lineage.origin
    assert (origin.hookpoint, origin.group, origin.direction) == ("layers.1", "layers.1", "backward")
    assert (origin.run, origin.suite, origin.lineage.tokens) == ("runs/base", "baseline", 1000)
    assert again.saes["layers.0"].lineage == trained.saes["layers.0"].lineage
    assert again.saes["layers.0"].lineage.total_tokens == 2000
    assert again.saes["layers.2"].lineage.total_tokens == 1000


# ---- refusals


@pytest.mark.parametrize(
    ("d_model", "sae", "message"),
    [
        (8, SAE.model_copy(update={"d_sae": 32}), r"sae\.d_sae: 24 -> 32"),
        (16, SAE, r"d_model: 8 -> 16"),
    ],
)
def test_another_shape_is_refused_naming_what_differs(base, d_model, sae, message):
    with pytest.raises(ConfigError, match=message):
        WarmStart(base).require_possible(SINGLE.groups, d_model, sae, TRAIN)


def test_other_settings_are_told_and_not_refused(base):
    other = TopKConfig(expansion=3, k=4, dead_after_tokens=150)  # as wide as the source
    assert WarmStart(base).require_possible(SINGLE.groups, 8, other, TRAIN) == ["sae.k: 3 -> 4"]
    assert WarmStart(base).require_possible(SINGLE.groups, 8, SAE, TRAIN) == []


def test_a_center_must_be_alike_where_the_source_does_not_know_the_layer(base):
    known = Scales(("layers.1",), base.scales.scale_L[1:2], base.scales.center_LD[1:2])
    odd = Suite(Partition.singletons(("layers.1",)), {"layers.1": base.saes["layers.1"]}, known)
    uncentered = TRAIN.model_copy(update={"center": False})
    with pytest.raises(ConfigError, match=r"train\.center: True -> False"):
        WarmStart(odd).require_possible((("layers.0",),), 8, SAE, uncentered)
    assert WarmStart(odd).require_possible((("layers.0",),), 8, SAE, TRAIN) == []
    assert WarmStart(base).require_possible(SINGLE.groups, 8, SAE, uncentered) == []


def test_groups_of_several_layers_are_refused_before_anything_is_read(base):
    with pytest.raises(PartitionError, match=r"layers\.0\+2: a warm start trains one SAE per layer"):
        train(make_source(), PAIRS, SAE, TRAIN, buffer_tokens=128, start=WarmStart(base))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_starts_warm_with_all_its_state(architecture):
    sae = ARCHITECTURES[architecture][0](d_sae=24, k=3)
    suite = run(SINGLE.groups, sae=sae).suite(SINGLE)
    start = WarmStart(suite, "backward")
    for hookpoint, found in start.starts(LAYERS, suite.scales).items():
        assert equal(state(found.sae), state(suite[start.sources(LAYERS)[hookpoint]].sae))
    assert start.digest(LAYERS) != WarmStart(suite, "forward").digest(LAYERS)
    trained = run(SINGLE.groups, sae=sae, starts=start.starts(LAYERS, suite.scales))
    assert not torch.equal(trained.saes["layers.0"].W_enc, suite.saes["layers.1"].W_enc)
