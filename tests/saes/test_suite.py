import json
import resource
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from groupsae.config import TopKConfig
from groupsae.errors import PartitionError, RunError, StorageError
from groupsae.partition import Partition
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite, load_sae, save_sae
from groupsae.saes.topk import TopKSAE

D_MODEL = 8
SCATTERED = Partition((("layers.0", "layers.2"), ("layers.1",)))


def make_suite(partition=SCATTERED, seed=0):
    """A suite with random weights, and another scale and center at each hookpoint."""
    random = torch.Generator().manual_seed(seed)
    saes = {}
    for index, name in enumerate(partition.names):
        saes[name] = TopKSAE(D_MODEL, TopKConfig(d_sae=24, k=3))
        saes[name].initialize(seed + index)
        saes[name].requires_grad_(False)
        saes[name].b_dec.copy_(torch.randn(D_MODEL, generator=random))
    hookpoints = partition.hookpoints
    scale_L = torch.arange(1.0, len(hookpoints) + 1)
    return Suite(partition, saes, Scales(hookpoints, scale_L, torch.randn(len(hookpoints), D_MODEL, generator=random)))


@pytest.fixture
def suite():
    return make_suite()


@pytest.fixture
def saved(suite, tmp_path):
    suite.save(tmp_path / "suite")
    return tmp_path / "suite"


def activations(*shape):
    return torch.randn(*shape, D_MODEL, generator=torch.Generator().manual_seed(5))


# ---- bound to a hookpoint


def test_layers_of_a_group_use_their_own_scale_and_center(suite):
    sae, x_ND = suite.saes["layers.0+2"], activations(10)
    for index, hookpoint in ((0, "layers.0"), (2, "layers.2")):
        scale, center_D = index + 1.0, suite.scales.center_LD[index]
        z_ND = scale * (x_ND - center_D)
        torch.testing.assert_close(suite[hookpoint].encode(x_ND), sae.encode(z_ND))
        torch.testing.assert_close(suite[hookpoint](x_ND), sae(z_ND) / scale + center_D)


def test_layers_that_differ_by_a_factor_are_served_alike_by_one_group():
    x_ND = activations(10)
    scales = Scales(("layers.0", "layers.1"), torch.tensor([1.0, 2.0]), torch.zeros(2, D_MODEL))
    pair = Partition((("layers.0", "layers.1"),))
    suite = Suite(pair, make_suite(pair).saes, scales)
    torch.testing.assert_close(suite["layers.1"].encode(x_ND / 2), suite["layers.0"].encode(x_ND))
    torch.testing.assert_close(suite["layers.1"](x_ND / 2), suite["layers.0"](x_ND) / 2)


def test_decoding_what_was_encoded_is_the_reconstruction_in_raw_units(suite):
    bound, x_ND = suite["layers.2"], activations(10)
    torch.testing.assert_close(bound.decode(bound.encode(x_ND)), bound(x_ND))
    torch.testing.assert_close(bound.decode_sparse(bound.encode_sparse(x_ND)), bound(x_ND))


@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0,), (2, 0)])
def test_any_leading_shape_is_kept(suite, shape):
    bound, x = suite["layers.1"], activations(*shape)
    assert bound(x).shape == x.shape
    assert bound.encode(x).shape == (*shape, 24)
    assert bound.decode(bound.encode(x)).shape == x.shape


def test_rows_and_positions_are_not_mixed(suite):
    x_BTD = activations(3, 4)
    torch.testing.assert_close(suite["layers.1"](x_BTD)[1, 2], suite["layers.1"](x_BTD[1, 2]))
    torch.testing.assert_close(suite["layers.1"].encode(x_BTD)[1, 2], suite["layers.1"].encode(x_BTD[1, 2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_reconstruction_has_the_precision_of_its_input_and_is_computed_in_float32(suite, dtype):
    x_ND = activations(10).to(dtype)
    assert torch.equal(suite["layers.2"](x_ND), suite["layers.2"](x_ND.float()).to(dtype))


def test_a_hookpoint_outside_the_partition_is_refused(suite):
    with pytest.raises(PartitionError, match=r"layers\.7"):
        suite["layers.7"]


# ---- on disk


def test_a_loaded_suite_equals_the_saved_one_to_the_bit(suite, saved):
    loaded, x_ND = Suite.load(saved), activations(10)
    assert loaded.partition == suite.partition
    for hookpoint in suite.partition.hookpoints:
        assert torch.equal(loaded[hookpoint](x_ND), suite[hookpoint](x_ND))


def test_saving_a_loaded_suite_gives_the_same_bytes(saved, tmp_path):
    Suite.load(saved).save(tmp_path / "again")

    def files(folder):
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert files(tmp_path / "again") == files(saved)
    assert len(files(saved)) == 2 + 2 * 2


def test_nothing_in_a_saved_suite_is_a_pickle(saved):
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_folder_that_holds_a_suite_is_not_overwritten(saved):
    before = (saved / "groups/layers.1/sae.safetensors").read_bytes()
    with pytest.raises(RunError, match="holds a suite already"):
        make_suite(seed=9).save(saved)
    assert (saved / "groups/layers.1/sae.safetensors").read_bytes() == before


def test_a_folder_without_a_suite_says_what_to_run(tmp_path):
    with pytest.raises(RunError, match=r"no suite\.json.*groupsae train"):
        Suite.load(tmp_path)


def test_an_unknown_suite_is_refused_with_the_names_there_are(saved):
    with pytest.raises(RunError, match="no suite 'baseline'; it has groups"):
        Suite.load(saved, "baseline")


def rewrite(file, change):
    tensors = load_file(file)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, file)


def put_nan(name):
    def change(tensors):
        tensors[name].view(-1)[-1] = torch.nan

    return change


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


DAMAGE = {
    "truncated": cut,
    "empty": lambda file: file.write_bytes(b""),
    "not safetensors": lambda file: file.write_bytes(b"\0" * 200),
    "huge header": lambda file: file.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    "header longer than the file": lambda file: file.write_bytes(struct.pack("<Q", 10**7) + b"{}"),
    "missing": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}
WRONG_WEIGHTS = {
    "NaN": put_nan("W_enc"),
    "infinity": lambda t: t["b_dec"].fill_(torch.inf),
    "wrong shape": lambda t: t.update(W_dec=t["W_dec"].T.contiguous()),
    "wrong dtype": lambda t: t.update(b_enc=t["b_enc"].half()),
    "missing key": lambda t: t.pop("b_enc"),
    "unknown key": lambda t: t.update(threshold=torch.zeros(24)),
}
WRONG_SCALES = {
    "NaN": put_nan("center.layers.1"),
    "infinite scale": lambda t: t["scale.layers.0"].fill_(torch.inf),
    "no scale": lambda t: t["scale.layers.0"].zero_(),
    "missing hookpoint": lambda t: t.pop("scale.layers.2"),
    "two scales": lambda t: t.update({"scale.layers.0": torch.ones(2)}),
    "one wide center": lambda t: t.update({"center.layers.0": torch.zeros(9)}),
    "wide centers": lambda t: t.update({f"center.layers.{i}": torch.zeros(9) for i in range(3)}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["groups/layers.1/sae.safetensors", "groups/layers.1/cfg.json", "scales.safetensors"])
def test_a_damaged_file_is_named(saved, name, damage):
    damage(saved / name)
    with pytest.raises(RunError, match=name):
        Suite.load(saved)


@pytest.mark.parametrize("change", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_weights_that_do_not_fit_the_config_are_refused(saved, change):
    rewrite(saved / "groups/layers.0+2/sae.safetensors", change)
    with pytest.raises(RunError, match=r"layers\.0\+2/sae\.safetensors.*Train again"):
        Suite.load(saved)


@pytest.mark.parametrize("change", WRONG_SCALES.values(), ids=WRONG_SCALES)
def test_scales_that_do_not_fit_the_suite_are_refused(saved, change):
    rewrite(saved / "scales.safetensors", change)
    with pytest.raises(RunError, match=r"scales\.safetensors.*Train again"):
        Suite.load(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [("k", 25), ("k", 0), ("k", "many"), ("architecture", "relu"), ("architecture", ["topk"]), ("typo", 1)],
)
def test_an_impossible_config_is_a_damaged_file(saved, key, value):
    file = saved / "groups/layers.1/cfg.json"
    cfg = json.loads(file.read_text())
    cfg["sae"][key] = value
    file.write_text(json.dumps(cfg))
    with pytest.raises(RunError, match=r"layers\.1/cfg\.json"):
        Suite.load(saved)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"d_model": -3, "sae": {"architecture": "topk"}}', "{", "\xff"])
def test_a_config_of_another_form_is_a_damaged_file(saved, text):
    (saved / "groups/layers.1/cfg.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"layers\.1/cfg\.json"):
        Suite.load(saved)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "{", '{"groups": 3}', '{"groups": []}', '{"groups": [["a", "a"]]}', '{"groups": [[1]]}']
)
def test_a_damaged_index_is_named(saved, text):
    (saved / "suite.json").write_text(text)
    with pytest.raises(RunError, match=r"suite\.json"):
        Suite.load(saved)


def test_a_full_disk_leaves_the_weights_that_were_there(tmp_path):
    small, large = (TopKSAE(D_MODEL, TopKConfig(d_sae=width, k=3)) for width in (24, 20_000))
    save_sae(small, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"sae\.safetensors"):
            save_sae(large, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(load_sae(tmp_path).W_dec, small.W_dec)
    assert {path.name for path in tmp_path.iterdir()} == {"sae.safetensors", "cfg.json"}


def test_one_sae_object_serves_all_hookpoints_of_its_group(suite):
    assert suite["layers.0"].sae is suite["layers.2"].sae
    assert suite["layers.0"].scale != suite["layers.2"].scale
