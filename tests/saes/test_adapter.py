"""What a layer has of its own inside a group: maps in closed form, and back."""

import pytest
import torch

from groupsae.training.fit import measure_scales
from groupsae.activations.source import SyntheticSource, stream
from groupsae.config import GroupConfig, PerLayer, TopKConfig, TrainConfig
from groupsae.errors import ConfigError, RunError
from groupsae.partition import Partition, group_name
from groupsae.saes.layer_maps import LayerMaps
from groupsae.training.fit import fit_layer_maps
from groupsae.saes.suite import Suite
from groupsae.training.trainer import train, train_groups
from groupsae.training.warm_start import WarmStart

GROUP = ("layers.0", "layers.1", "layers.3")
TOKENS = 64 * 16
OWN = {
    "affine": PerLayer(affine=True),
    "rotation": PerLayer(rotation=True),
    "bias": PerLayer(bias=True),
    "absorber": PerLayer(absorber=3),
    "all": PerLayer(affine=True, bias=True, rotation=True, absorber=2),
}


def fitted(own, group=GROUP, center=True):
    """(adapter, z_MND): the adapter of a group, and what its layers' tokens are in scaled units."""
    source = SyntheticSource(num_layers=4, d_model=8, num_rows=64, row_tokens=16)
    scales = measure_scales(source, TOKENS, center=center)
    adapter = fit_layer_maps(source, [group], scales, own, TOKENS, d_sae=32)[group]
    x_LND = torch.cat(list(stream(source, TOKENS, 0)), dim=1)
    at, layers = scales.at(group), [source.hookpoints.index(name) for name in group]
    return adapter, (x_LND[layers] - at.center_LD[:, None]) * at.scale_L[:, None, None]


def entered(adapter, z_MND):
    count = z_MND.shape[1]
    return torch.stack([adapter.enter(z, torch.full((count,), layer)) for layer, z in enumerate(z_MND)])


def returned(adapter, y_ND, z_ND, layer):
    return adapter.leave(y_ND, layer) + adapter.absorbed(z_ND, layer)


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
@pytest.mark.parametrize("center", [False, True])
def test_what_enters_and_leaves_unchanged_comes_back(own, center):
    adapter, z_MND = fitted(own, center=center)
    for layer, (z_ND, y_ND) in enumerate(zip(z_MND, entered(adapter, z_MND), strict=True)):
        torch.testing.assert_close(returned(adapter, y_ND, z_ND, layer), z_ND, rtol=1e-4, atol=1e-5)


def test_tokens_of_several_layers_enter_as_they_would_layer_by_layer():
    adapter, z_MND = fitted(OWN["all"])
    layers_N = torch.arange(TOKENS) % 3
    mixed_ND = adapter.enter(z_MND[layers_N, torch.arange(TOKENS)], layers_N)
    torch.testing.assert_close(mixed_ND, entered(adapter, z_MND)[layers_N, torch.arange(TOKENS)])


def test_gains_give_each_dimension_the_same_spread_at_every_layer():
    adapter, z_MND = fitted(OWN["affine"])
    spread_MD = entered(adapter, z_MND).std(1)
    torch.testing.assert_close(spread_MD, spread_MD[:1].expand_as(spread_MD), rtol=1e-4, atol=0)
    assert not torch.allclose(z_MND.std(1)[0], z_MND.std(1)[2], rtol=0.02)


def test_the_rotation_is_the_nearest_to_the_middle_layer():
    adapter, z_MND = fitted(OWN["rotation"])
    y_MND, middle_ND = entered(adapter, z_MND), z_MND[1]
    R_MDD = adapter.rotation_MDD
    torch.testing.assert_close(R_MDD @ R_MDD.mT, torch.eye(8).expand(3, 8, 8), rtol=0, atol=1e-5)
    torch.testing.assert_close(R_MDD[1], torch.eye(8), rtol=0, atol=1e-4)
    for layer in (0, 2):
        best = (y_MND[layer] - middle_ND).square().sum()
        assert best < (z_MND[layer] - middle_ND).square().sum()
        for seed in range(5):
            noise_DD = 0.05 * torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
            turned_DD = torch.linalg.matrix_exp(noise_DD - noise_DD.T) @ R_MDD[layer]
            assert (z_MND[layer] @ turned_DD.T - middle_ND).square().sum() > best


def test_after_gains_and_absorber_the_rotation_is_that_of_what_has_entered_so_far():
    together, z_MND = fitted(OWN["all"], center=False)
    before, _ = fitted(PerLayer(affine=True, absorber=2), center=False)
    y_MND = entered(before, z_MND).double()
    u_DD, _, vh_DD = torch.linalg.svd(y_MND[1].T @ y_MND[0])  # not unique where the absorber has left nothing
    found_ND, best_ND = y_MND[0] @ together.rotation_MDD[0].double().T, y_MND[0] @ (u_DD @ vh_DD).T
    torch.testing.assert_close((found_ND - y_MND[1]).norm(), (best_ND - y_MND[1]).norm(), rtol=1e-5, atol=0)


def test_the_absorber_takes_the_directions_of_largest_variance_and_says_their_share():
    adapter, z_MND = fitted(OWN["absorber"])
    for layer, (z_ND, y_ND) in enumerate(zip(z_MND, entered(adapter, z_MND), strict=True)):
        centered_ND = (z_ND - z_ND.mean(0)).double()
        variances = torch.linalg.svdvals(centered_ND).square()
        share = variances[:3].sum() / variances.sum()
        torch.testing.assert_close(adapter.absorbed_M[layer].double(), share, rtol=1e-4, atol=0)
        left = (y_ND - y_ND.mean(0)).square().sum() / centered_ND.square().sum()
        assert left.item() == pytest.approx(1 - share.item(), rel=1e-3)
        torch.testing.assert_close(y_ND.mean(0), z_ND.mean(0), rtol=0, atol=1e-5)


def test_a_group_of_one_layer_is_turned_and_stretched_by_nothing():
    adapter, z_MND = fitted(PerLayer(affine=True, rotation=True), group=("layers.2",))
    torch.testing.assert_close(entered(adapter, z_MND), z_MND, rtol=1e-4, atol=1e-5)


def test_without_parts_an_adapter_holds_nothing_and_changes_nothing():
    adapter = LayerMaps(3, 8, PerLayer())
    z_ND = torch.randn(5, 8)
    assert adapter.enter(z_ND, torch.zeros(5, dtype=torch.long)) is z_ND
    assert adapter.leave(z_ND, 0) is z_ND
    assert not adapter.absorbed(z_ND, 0).any()


def test_parts_are_named_in_the_config():
    assert PerLayer.parse(("rotation", "absorber:4")) == PerLayer(rotation=True, absorber=4)
    assert PerLayer.parse(("none",)) == PerLayer.parse(()) == PerLayer()


@pytest.mark.parametrize("names", [["rotations"], ["absorber"], ["absorber:0"], ["rotation:2"], ["none:", "affine"]])
def test_an_unknown_part_is_refused_with_those_known(names):
    with pytest.raises(ConfigError, match="Known are none, affine, bias, rotation, absorber:R"):
        GroupConfig(per_layer=names)


# ---- in a suite


def trained_suite(own, groups=(GROUP, ("layers.2",)), tokens=4000):
    source = SyntheticSource(num_layers=4, d_model=8, num_rows=64, row_tokens=16)
    settings = TrainConfig(num_tokens=tokens, batch_tokens=64, learning_rate=1e-2, scale_tokens=TOKENS, center=True)
    sae = TopKConfig(d_sae=32, k=3)
    return source, train(source, Partition(groups), sae, settings, buffer_tokens=256, per_layer=own)


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
def test_a_suite_reconstructs_raw_activations_through_each_layers_maps(own, tmp_path):
    source, suite = trained_suite(own)
    x_LND = source.read(range(64))
    for layer, name in enumerate(source.hookpoints):
        x_ND, bound = x_LND[layer], suite[name]
        fvu = (bound(x_ND) - x_ND).square().sum() / (x_ND - x_ND.mean(0)).square().sum()
        assert fvu < 0.6
        torch.testing.assert_close(bound.decode_sparse(bound.encode_sparse(x_ND), x_ND), bound(x_ND))
        torch.testing.assert_close(bound.encode_sparse(x_ND).dense(32), bound.encode(x_ND))
    suite.save(tmp_path / "suite")
    loaded = Suite.load(tmp_path / "suite")
    for layer, name in enumerate(source.hookpoints):
        assert torch.equal(loaded[name](x_LND[layer]), suite[name](x_LND[layer]))


def test_an_absorber_lowers_the_share_of_variance_that_is_left():
    def mean_fvu(own):
        source, suite = trained_suite(own)
        x_LND = source.read(range(64))
        return sum(
            ((suite[name](x) - x).square().sum() / (x - x.mean(0)).square().sum()).item()
            for name, x in zip(source.hookpoints, x_LND, strict=True)
        )

    assert mean_fvu(OWN["absorber"]) < 0.9 * mean_fvu(PerLayer())


def test_a_damaged_adapter_is_named(tmp_path):
    _, suite = trained_suite(OWN["all"], tokens=64)
    suite.save(tmp_path / "suite")
    file = next(tmp_path.glob("suite/groups/*/adapter.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=r"adapter\.safetensors is missing or damaged"):
        Suite.load(tmp_path / "suite")


@pytest.mark.parametrize("own", [OWN["rotation"], OWN["bias"], PerLayer(bias=True, rotation=True)])
def test_a_warm_start_from_layers_with_maps_that_fold_does_what_the_group_did(own):
    _, suite = trained_suite(own, tokens=500)
    source, names = SyntheticSource(num_layers=4, d_model=8, num_rows=64, row_tokens=16), GROUP
    x_LND = source.read(range(8))
    starts = WarmStart(suite, "group").starts(names, suite.scales)
    for name in names:
        alone = Suite(Partition(((name,),)), {name: starts[name].sae}, suite.scales)
        x_ND = x_LND[source.hookpoints.index(name)]
        torch.testing.assert_close(alone[name](x_ND), suite[name](x_ND), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("own", [OWN["affine"], OWN["absorber"], OWN["all"]])
def test_a_warm_start_from_layers_with_other_maps_is_refused(own):
    _, suite = trained_suite(own, tokens=64)
    with pytest.raises(ConfigError, match="per_layer"):
        WarmStart(suite, "group").require_possible([(GROUP[0],)], 8, TopKConfig(d_sae=32, k=3), TrainConfig())


def test_each_layer_of_a_group_learns_a_bias_of_its_own():
    _, suite = trained_suite(OWN["bias"])
    shared, alone = (suite.adapters[name] for name in suite.partition.names)
    assert shared.bias_MS.shape == (3, 32)
    assert alone.bias_MS is None
    held_MS = torch.stack([suite[name].sae.b_enc for name in GROUP]) - suite.saes[suite.partition.names[0]].b_enc
    torch.testing.assert_close(held_MS, shared.bias_MS)
    assert (shared.bias_MS != 0).any(1).all()
    assert not torch.allclose(shared.bias_MS[0], shared.bias_MS[2])


def test_training_leaves_the_adapters_it_is_given_as_they_were():
    source = SyntheticSource(num_layers=4, d_model=8, num_rows=64, row_tokens=16)
    scales, own, sae = measure_scales(source, TOKENS), OWN["bias"], TopKConfig(d_sae=32, k=3)
    given = fit_layer_maps(source, [GROUP], scales, own, TOKENS, d_sae=32)
    settings = TrainConfig(num_tokens=128, batch_tokens=64)
    trained = train_groups(source, [GROUP], scales, sae, settings, seed=0, buffer_tokens=256, adapters=given)
    assert trained.adapters[group_name(GROUP)].bias_MS.any()
    assert not given[GROUP].bias_MS.any()
