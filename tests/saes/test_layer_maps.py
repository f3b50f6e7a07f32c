"""What a layer has of its own inside a group: maps in closed form, and back."""

import pytest
import torch

from groupsae.activations.source import SyntheticSource, stream
from groupsae.config import GroupConfig, PerLayer, TopKConfig, TrainConfig
from groupsae.errors import ConfigError, RunError
from groupsae.partition import Partition, group_name
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.suite import Suite
from groupsae.training.fit import fit_layer_maps, measure_scales
from groupsae.training.trainer import train, train_groups
from groupsae.training.warm_start import WarmStart

GROUP = ("layers.0", "layers.1", "layers.3")
TOKENS = 64 * 16
OWN = {
    "rotation": PerLayer(rotation=True),
    "bias": PerLayer(bias=True),
    "all": PerLayer(bias=True, rotation=True),
}


def fitted(own, group=GROUP, center=True):
    """(maps, z_MND): the maps of a group, and what its layers' tokens are in scaled units."""
    source = SyntheticSource(num_layers=4, d_model=8, num_rows=64, row_tokens=16)
    scales = measure_scales(source, TOKENS, center=center)
    maps = fit_layer_maps(source, [group], scales, own, TOKENS, d_sae=32)[group]
    x_LND = torch.cat(list(stream(source, TOKENS, 0)), dim=1)
    at, layers = scales.at(group), [source.hookpoints.index(name) for name in group]
    return maps, (x_LND[layers] - at.center_LD[:, None]) * at.scale_L[:, None, None]


def entered(maps, z_MND):
    count = z_MND.shape[1]
    return torch.stack([maps.to_group(z, torch.full((count,), layer)) for layer, z in enumerate(z_MND)])


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
@pytest.mark.parametrize("center", [False, True])
def test_what_enters_and_leaves_unchanged_comes_back(own, center):
    maps, z_MND = fitted(own, center=center)
    for layer, (z_ND, y_ND) in enumerate(zip(z_MND, entered(maps, z_MND), strict=True)):
        torch.testing.assert_close(maps.from_group(y_ND, layer), z_ND, rtol=1e-4, atol=1e-5)


def test_tokens_of_several_layers_enter_as_they_would_layer_by_layer():
    maps, z_MND = fitted(OWN["all"])
    layers_N = torch.arange(TOKENS) % 3
    mixed_ND = maps.to_group(z_MND[layers_N, torch.arange(TOKENS)], layers_N)
    torch.testing.assert_close(mixed_ND, entered(maps, z_MND)[layers_N, torch.arange(TOKENS)])


def test_the_rotation_is_the_nearest_to_the_middle_layer():
    maps, z_MND = fitted(OWN["rotation"])
    y_MND, middle_ND = entered(maps, z_MND), z_MND[1]
    R_MDD = maps.rotation_MDD
    torch.testing.assert_close(R_MDD @ R_MDD.mT, torch.eye(8).expand(3, 8, 8), rtol=0, atol=1e-5)
    torch.testing.assert_close(R_MDD[1], torch.eye(8), rtol=0, atol=1e-4)
    for layer in (0, 2):
        best = (y_MND[layer] - middle_ND).square().sum()
        assert best < (z_MND[layer] - middle_ND).square().sum()
        for seed in range(5):
            noise_DD = 0.05 * torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
            turned_DD = torch.linalg.matrix_exp(noise_DD - noise_DD.T) @ R_MDD[layer]
            assert (z_MND[layer] @ turned_DD.T - middle_ND).square().sum() > best


def test_a_group_of_one_layer_is_turned_by_nothing():
    maps, z_MND = fitted(PerLayer(rotation=True), group=("layers.2",))
    torch.testing.assert_close(entered(maps, z_MND), z_MND, rtol=1e-4, atol=1e-5)


def test_without_parts_maps_hold_nothing_and_change_nothing():
    maps = LayerMaps(3, 8, PerLayer())
    z_ND = torch.randn(5, 8)
    assert maps.to_group(z_ND, torch.zeros(5, dtype=torch.long)) is z_ND
    assert maps.from_group(z_ND, 0) is z_ND


def test_parts_are_named_in_the_config():
    assert PerLayer.parse(("rotation", "bias")) == PerLayer(bias=True, rotation=True)
    assert PerLayer.parse(("none",)) == PerLayer.parse(()) == PerLayer()


@pytest.mark.parametrize("names", [["rotations"], ["affine"], ["absorber:4"], ["rotation:2"], ["none:", "bias"]])
def test_an_unknown_part_is_refused_with_those_known(names):
    with pytest.raises(ConfigError, match="Known are none, bias, rotation"):
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
        torch.testing.assert_close(bound.decode_sparse(bound.encode_sparse(x_ND)), bound(x_ND))
        torch.testing.assert_close(bound.encode_sparse(x_ND).dense(32), bound.encode(x_ND))
    suite.save(tmp_path / "suite")
    loaded = Suite.load(tmp_path / "suite")
    for layer, name in enumerate(source.hookpoints):
        assert torch.equal(loaded[name](x_LND[layer]), suite[name](x_LND[layer]))


def test_a_damaged_file_of_maps_is_named(tmp_path):
    _, suite = trained_suite(OWN["all"], tokens=64)
    suite.save(tmp_path / "suite")
    file = next(tmp_path.glob("suite/groups/*/layer_maps.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=r"layer_maps\.safetensors is missing or damaged"):
        Suite.load(tmp_path / "suite")


@pytest.mark.parametrize("own", [OWN["rotation"], OWN["bias"], OWN["all"]])
def test_a_warm_start_from_layers_with_maps_that_fold_does_what_the_group_did(own):
    _, suite = trained_suite(own, tokens=500)
    source, names = SyntheticSource(num_layers=4, d_model=8, num_rows=64, row_tokens=16), GROUP
    x_LND = source.read(range(8))
    starts = WarmStart(suite, "group").starts(names, suite.scales)
    for name in names:
        alone = Suite(Partition(((name,),)), {name: starts[name].sae}, suite.scales)
        x_ND = x_LND[source.hookpoints.index(name)]
        torch.testing.assert_close(alone[name](x_ND), suite[name](x_ND), rtol=1e-4, atol=1e-4)


def test_each_layer_of_a_group_learns_a_bias_of_its_own():
    _, suite = trained_suite(OWN["bias"])
    shared, alone = (suite.layer_maps[name] for name in suite.partition.names)
    assert shared.bias_MS.shape == (3, 32)
    assert alone.bias_MS is None
    held_MS = torch.stack([suite[name].sae.b_enc for name in GROUP]) - suite.saes[suite.partition.names[0]].b_enc
    torch.testing.assert_close(held_MS, shared.bias_MS)
    assert (shared.bias_MS != 0).any(1).all()
    assert not torch.allclose(shared.bias_MS[0], shared.bias_MS[2])


def test_training_leaves_the_maps_it_is_given_as_they_were():
    source = SyntheticSource(num_layers=4, d_model=8, num_rows=64, row_tokens=16)
    scales, own, sae = measure_scales(source, TOKENS), OWN["bias"], TopKConfig(d_sae=32, k=3)
    given = fit_layer_maps(source, [GROUP], scales, own, TOKENS, d_sae=32)
    settings = TrainConfig(num_tokens=128, batch_tokens=64)
    trained = train_groups(source, [GROUP], scales, sae, settings, seed=0, buffer_tokens=256, layer_maps=given)
    assert trained.layer_maps[group_name(GROUP)].bias_MS.any()
    assert not given[GROUP].bias_MS.any()


def test_maps_for_another_width_keep_rotations_and_have_biases_of_zero():
    maps = LayerMaps(3, 4, PerLayer(bias=True, rotation=True), 10)
    with torch.no_grad():
        maps.rotation_MDD.copy_(torch.linalg.qr(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)))[0])
        maps.bias_MS.fill_(2.0)
    other = maps.for_width(6)
    assert torch.equal(other.rotation_MDD, maps.rotation_MDD)
    assert torch.equal(other.bias_MS, torch.zeros(3, 6))
    assert maps.for_width(10) is maps
    assert LayerMaps(3, 4, PerLayer(rotation=True), 10).for_width(6).bias_MS is None
