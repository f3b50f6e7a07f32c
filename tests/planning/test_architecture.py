"""What is counted of a model: its parameters, and the FLOPs of its blocks."""

import json
import math

import pytest
import torch
import transformers
from families import FAMILIES, LENGTH, STATE_SPACE, VOCAB, family_config, family_model
from planning_cases import counted
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from groupsae.errors import ConfigError, ModelError
from groupsae.model_structure import base_model, find_blocks, longest_row
from groupsae.models import load_skeleton
from groupsae.planning.architecture import Architecture


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_model_and_need_no_weights(family):
    model = family_model(family)
    blocks = find_blocks(model)[1]
    architecture = counted(family_config(family))
    assert architecture == Architecture.of(model, blocks)
    assert architecture.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sum(block.parameters for block in architecture.blocks) == sum(p.numel() for p in blocks.parameters())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in STATE_SPACE])
def test_flops_are_those_of_a_real_forward_pass(family):
    model = family_model(family, attn_implementation="eager")
    model.config._experts_implementation = "eager"  # which multiplies by the experts that are used, one by one
    ids_BT = torch.randint(3, VOCAB, (2, LENGTH))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        base_model(model)(ids_BT, use_cache=False)
    architecture = Architecture.of(model, find_blocks(model)[1])
    assert architecture.forward_flops(LENGTH) == pytest.approx(counter.get_total_flops() / ids_BT.numel(), rel=0.01)
    assert architecture.unpriced == ()


@pytest.mark.parametrize("family", STATE_SPACE)
def test_a_recurrence_is_said_to_be_left_out(family):
    (unpriced,) = counted(family_config(family)).unpriced
    assert unpriced.startswith("the recurrence over positions in Mamba")


@pytest.mark.parametrize(
    ("kind", "sizes", "parameters"),
    [
        ("GPTNeoX", (12, 768, 12, 3072, 50304, 2048), 162_322_944),
        ("GPTNeoX", (24, 1024, 16, 4096, 50304, 2048), 405_334_016),
        ("GPTNeoX", (16, 2048, 8, 8192, 50304, 2048), 1_011_781_632),
        ("GPT2", None, 124_439_808),
        ("Mixtral", None, 46_702_792_704),
    ],
)
def test_published_models_have_the_published_numbers_of_parameters(kind, sizes, parameters):
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    config = getattr(transformers, f"{kind}Config")(**dict(zip(names, sizes or (), strict=False)))
    assert counted(config).parameters == parameters


def test_a_gpt_2_block_costs_what_the_published_formula_says():
    assert counted(transformers.GPT2Config()).forward_flops(1024, 1) == 24 * 768**2 + 4 * 1024 * 768


def test_shared_key_heads_are_counted():
    config = transformers.LlamaConfig(
        num_hidden_layers=16,
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
        tie_word_embeddings=True,
    )
    assert counted(config).parameters == 1_235_814_400


def test_a_token_pays_for_the_experts_it_uses():
    two, all_of_them = (counted(transformers.MixtralConfig(num_experts_per_tok=used)) for used in (2, 8))
    experts = 8 * 3 * 4096 * 14336
    assert all_of_them.blocks[0].token_flops - two.blocks[0].token_flops == 2 * experts * 6 // 8
    assert two.blocks[0].parameters == all_of_them.blocks[0].parameters
    assert (two.intermediate_size, all_of_them.intermediate_size) == (2 * 14336, 8 * 14336)


def test_what_a_config_does_not_tell_is_said():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.blocks = nn.ModuleList([nn.ModuleDict({"attention": Attention(), "experts": nn.Linear(8, 8)})])

        def get_input_embeddings(self):
            return self.embed

    plain = Plain()
    architecture = Architecture.of(plain, plain.blocks)
    assert (architecture.d_model, architecture.vocab_size) == (8, 10)
    assert architecture.blocks[0].token_flops == 2 * (8 * 24 + 8 * 8)
    assert "Attention: its heads" in architecture.unpriced[0] + architecture.unpriced[1]
    assert "num_experts_per_tok is not in the config" in architecture.unpriced[0] + architecture.unpriced[1]
    with pytest.raises(ConfigError, match="The width of Linear cannot be told"):
        Architecture.of(nn.Linear(2, 2), [])


def test_the_longest_row_is_read_by_each_familys_own_name():
    limits = {
        family: longest_row(family_model(family)) for family in ("gpt2", "mpt", "llama", "xglm", "mamba", "bloom")
    }
    assert limits == dict.fromkeys(limits, LENGTH) | {"mamba": None, "bloom": None}


def test_a_config_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match=r"builds no causal LM.*decoder-only"):
        load_skeleton(str(tmp_path))


def test_a_mixture_of_experts_is_planned_at_its_size(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transformers.MixtralConfig(num_hidden_layers=4).save_pretrained(tmp_path / "mixtral")
    (tmp_path / "plan.toml").write_text(
        '[model]\nname = "./mixtral"\ndtype = "bfloat16"\ndevice = "cpu"\n[plan]\ncalibrate = false\n'
    )
    code, out, err = call("plan", "plan.toml", "--json")
    assert code == 0, err
    weights = 2 * counted(transformers.MixtralConfig(num_hidden_layers=4)).parameters
    assert json.loads(out)["run"]["host_bytes"] > weights > 11 * 2**30
    assert math.isfinite(json.loads(out)["run"]["own_flops"])
