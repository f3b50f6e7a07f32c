import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import BLOCKS_NAME, FAMILIES, save_model, tiny_model, tiny_tokenizer
from torch import nn
from transformers import GPTNeoXModel

from groupsae.errors import HookpointError, ModelError, NumericalError
from groupsae.model_structure import (
    base_model,
    find_blocks,
    find_hookpoints,
    first_tensor,
    residual_stream,
    with_first_tensor,
)
from groupsae.models import load_model, pick_device


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), tiny_model())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_with_its_weights_and_tokenizer(family, tmp_path):
    made = tiny_model(family)
    model, tokenizer = load_model(str(save_model(tmp_path, made)), device="cpu")
    loaded = model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in made.state_dict().items())
    assert tokenizer("ab")["input_ids"] == tiny_tokenizer()("ab")["input_ids"]


def test_a_loaded_model_is_frozen_and_in_eval_mode(saved):
    model, _ = load_model(str(saved), device="cpu")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_model_is_loaded_in_the_precision_asked_for(saved):
    model, _ = load_model(str(saved), device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_are_found(family):
    model = tiny_model(family, layers=4)
    name, blocks = find_blocks(model)
    assert name == BLOCKS_NAME[family]
    assert blocks is getattr(base_model(model), name)
    assert residual_stream(model) == tuple(f"{name}.{index}" for index in range(4))


def test_a_longer_list_that_is_not_the_blocks_is_passed_over():
    model = tiny_model(layers=3)
    base_model(model).extras = nn.ModuleList(nn.Identity() for _ in range(7))
    assert find_blocks(model)[0] == "layers"


def test_a_model_without_a_block_list_is_an_error_that_says_what_was_found():
    model = tiny_model(layers=3)
    base_model(model).layers = nn.Sequential(*base_model(model).layers)
    with pytest.raises(ModelError, match="has no list of 3 blocks; module lists found: none"):
        find_blocks(model)
    base_model(model).layers = nn.ModuleList(list(base_model(model).layers)[:2])
    with pytest.raises(ModelError, match=r"no list of 3 blocks; module lists found: layers \(2\)"):
        residual_stream(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_means_every_block_but_the_last(family):
    model = tiny_model(family, layers=4)
    assert find_hookpoints(model, ["residual"]) == residual_stream(model)[:3]


@pytest.mark.parametrize("family", FAMILIES)
def test_wildcards_select_modules(family):
    model, name = tiny_model(family, layers=2), BLOCKS_NAME[family]
    assert find_hookpoints(model, [f"{name}.*.mlp"]) == (f"{name}.0.mlp", f"{name}.1.mlp")
    assert find_hookpoints(model, ["residual", f"{name}.*", f"{name}.0.mlp"]) == (
        f"{name}.0",
        f"{name}.0.mlp",
        f"{name}.1",
    )


def test_a_hookpoint_that_matches_nothing_names_the_nearest():
    with pytest.raises(HookpointError, match=r"'layer\.1' matches nothing in GPTNeoX.*Did you mean 'layers\.1'"):
        find_hookpoints(tiny_model(), ["residual", "layer.1"])


def test_a_hookpoint_of_another_family_says_what_this_one_has():
    with pytest.raises(HookpointError, match=r"It has h\.0 \.\.\. h\.2\."):
        find_hookpoints(tiny_model("gpt2"), ["layers.1"])


def test_a_model_of_one_block_has_no_residual_stream_to_group():
    with pytest.raises(HookpointError, match="one block only"):
        find_hookpoints(tiny_model(layers=1), ["residual"])


@pytest.mark.parametrize("name", ["/no/such/model", "./no-such-model", "~/no-such-model", "no/such/model"])
def test_a_missing_directory_is_an_error_that_says_what_is_allowed(name):
    with pytest.raises(ModelError, match=r"There is no model directory .*hub, or 'demo'\."):
        load_model(name)


def test_a_hub_model_that_cannot_be_had_is_an_error():
    with pytest.raises(ModelError, match="'nobody/nothing' cannot be loaded"):
        load_model("nobody/nothing")


def test_a_directory_without_a_model_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))


def test_a_directory_without_a_tokenizer_is_an_error(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(str(tmp_path))


def test_weights_that_are_cut_off_are_an_error(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder))


def test_weights_that_are_missing_are_an_error_and_not_random_numbers(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp"):
        load_model(str(folder))


def test_a_model_without_a_head_is_an_error(tmp_path):
    GPTNeoXModel(tiny_model().config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lack"):
        load_model(str(tmp_path))


def test_nan_in_the_weights_is_an_error_that_names_the_weight(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name and name.endswith("weight"))
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=name.replace(".", r"\.")):
        load_model(str(folder))


def test_a_model_that_is_no_causal_lm_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error(device):
    with pytest.raises(ModelError, match=f"Device '{device}' cannot be used"):
        pick_device(device)


def test_the_built_in_model_can_be_loaded_offline():
    model, tokenizer = load_model("demo", device="cpu")
    assert len(find_blocks(model)[1]) >= 8
    assert len(tokenizer) <= model.config.vocab_size


@pytest.mark.parametrize("output", [torch.ones(2), (torch.ones(2), "weights"), [torch.ones(2), None]])
def test_the_hidden_state_is_read_and_written_back_in_the_form_found(output):
    assert torch.equal(first_tensor(output), torch.ones(2))
    written = with_first_tensor(output, torch.zeros(2))
    assert type(written) is type(output)
    assert torch.equal(first_tensor(written), torch.zeros(2))
    assert not isinstance(output, tuple | list) or list(written[1:]) == list(output[1:])
