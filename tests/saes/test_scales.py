import pytest
import torch
from safetensors.torch import load_file, save_file

from groupsae.activations.source import SyntheticSource, stream
from groupsae.errors import NumericalError, RunError
from groupsae.saes.scales import Scales
from groupsae.training.fit import measure_scales

SOURCE = SyntheticSource(num_layers=3, d_model=8, num_rows=16)
EVERYTHING = torch.cat(list(stream(SOURCE, 10**9, 0)), dim=1)


@pytest.mark.parametrize("center", [False, True])
def test_normalized_activations_have_a_mean_norm_of_one(center):
    scales = measure_scales(SOURCE, 10**9, center=center)
    for layer in range(3):
        z_ND = scales.normalize(EVERYTHING[layer], torch.full((EVERYTHING.shape[1],), layer))
        assert z_ND.norm(dim=-1).mean().item() == pytest.approx(1, abs=1e-5)
        assert bool(z_ND.mean(0).abs().max() < 1e-5) == center


def test_without_a_center_only_the_size_changes():
    assert not measure_scales(SOURCE, 100).center_LD.any()


def test_scales_do_not_depend_on_how_rows_are_read_together():
    one, other = SyntheticSource(num_rows=16), SyntheticSource(num_rows=16)
    other.batch_rows = 3
    for center in (False, True):
        a, b = (measure_scales(source, 400, center=center) for source in (one, other))
        torch.testing.assert_close(a.scale_L, b.scale_L, rtol=1e-6, atol=0)
        torch.testing.assert_close(a.center_LD, b.center_LD, rtol=1e-5, atol=1e-7)


def test_each_token_is_normalized_by_its_own_layer():
    scales = measure_scales(SOURCE, 10**9, center=True)
    layers_N = torch.tensor([2, 0, 1])
    z_ND = scales.normalize(EVERYTHING[layers_N, torch.arange(3)], layers_N)
    for n, layer in enumerate(layers_N.tolist()):
        scale, center_D = scales.of(f"layers.{layer}")
        torch.testing.assert_close(z_ND[n], (EVERYTHING[layer, n] - center_D) * scale)


def test_progress_is_told_every_token_of_every_pass():
    told = []
    measure_scales(SOURCE, 100, center=True, progress=told.append)
    assert sum(told) == 200


def test_activations_that_are_all_the_same_are_an_error():
    source = SyntheticSource(num_layers=2)
    source._directions_LFD = source._directions_LFD * torch.tensor([1.0, 0.0])[:, None, None]
    source._mean_LD[1] = 0
    with pytest.raises(NumericalError, match=r"Activations at layers\.1 are all the same"):
        measure_scales(source, 100)


# ---- on disk


def test_scales_survive_being_saved_whatever_the_order_asked_for(tmp_path):
    scales = measure_scales(SOURCE, 100, center=True)
    scales.save(tmp_path / "s.safetensors")
    loaded = Scales.load(tmp_path / "s.safetensors", ("layers.2", "layers.0"))
    for name in ("layers.0", "layers.2"):
        assert loaded.of(name)[0] == scales.of(name)[0]
        assert torch.equal(loaded.of(name)[1], scales.of(name)[1])


def test_a_hookpoint_without_a_scale_is_an_error(tmp_path):
    measure_scales(SOURCE, 100).save(tmp_path / "s.safetensors")
    with pytest.raises(RunError, match=r"missing or damaged: .*layers\.7"):
        Scales.load(tmp_path / "s.safetensors", ("layers.0", "layers.7"))


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, keep):
    file = tmp_path / "s.safetensors"
    measure_scales(SOURCE, 100).save(file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RunError, match="missing or damaged"):
        Scales.load(file, SOURCE.hookpoints)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_an_error(tmp_path, value):
    file = tmp_path / "s.safetensors"
    measure_scales(SOURCE, 100).save(file)
    save_file(load_file(file) | {"scale.layers.1": torch.tensor([value])}, file)
    with pytest.raises(RunError, match="NaN or infinity"):
        Scales.load(file, SOURCE.hookpoints)


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.tensor([0.0]), torch.tensor([-1.0])])
def test_a_scale_that_cannot_be_one_is_an_error(tmp_path, wrong):
    file = tmp_path / "s.safetensors"
    measure_scales(SOURCE, 100).save(file)
    save_file(load_file(file) | {"scale.layers.1": wrong}, file)
    with pytest.raises(RunError):
        Scales.load(file, SOURCE.hookpoints)
