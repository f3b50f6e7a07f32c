"""Models that see the future are refused where the next token is predicted; wrong towers are never taken."""

import re

import numpy as np
import pytest
import torch
import transformers
from families import BLOCKS, FAMILIES, IDS, NARROW, SHARED, VOCAB, family_model
from tiny import VOCAB_SIZE, save_model, tiny_tokenizer
from torch import nn

from groupsae.activations.harvest import Harvester
from groupsae.config import TopKConfig
from groupsae.errors import ModelError
from groupsae.evaluation.circuits import evaluate_circuits
from groupsae.evaluation.losses import evaluate_losses
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.model_structure import base_model, find_blocks, find_hookpoints, require_causal
from groupsae.partition import Partition
from groupsae.recipes import tokens as tokens_stage
from groupsae.saes.registry import build_sae
from groupsae.saes.suite import Suite
from groupsae.text.tokens import TokenRows
from groupsae.training.fit import measure_scales

ROWS = TokenRows(np.random.default_rng(0).integers(3, VOCAB, (4, 12)).astype(np.uint16))
SEES_AHEAD = {
    "bert": transformers.BertConfig(**NARROW),
    "roberta": transformers.RobertaConfig(**NARROW | {"max_position_embeddings": 32}),
    "electra": transformers.ElectraConfig(**NARROW, embedding_size=32),
}


def lm(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def suite_of(source):
    sae = build_sae(source.d_model, TopKConfig(d_sae=8, k=2))
    sae.initialize(0)
    partition = Partition.singletons(source.hookpoints)
    scales = measure_scales(source, 40)
    return {"one": Suite(partition, dict.fromkeys(partition.names, sae), scales)}


@pytest.mark.parametrize("kind", SEES_AHEAD)
def test_a_model_that_sees_the_future_is_refused_for_losses_and_circuits_only(kind):
    model = lm(SEES_AHEAD[kind])
    source = Harvester(model, ROWS, find_hookpoints(model, ["residual"]), skip_special=False)
    suites = suite_of(source)
    with pytest.raises(ModelError, match=r"sees the future.*reconstruction and similarity can be"):
        evaluate_losses(suites, source, 24)
    with pytest.raises(ModelError, match=r"sees the future"):
        evaluate_circuits(suites, source, tiny_tokenizer())
    assert evaluate_reconstructions(suites, source, 24).suites


def test_the_same_model_is_accepted_once_it_is_a_decoder():
    require_causal(lm(transformers.BertConfig(**NARROW, is_decoder=True)), ROWS[[0]], "It")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_models_are_accepted(family, dtype):
    require_causal(family_model(family).to(dtype), ROWS[[0]], "It")


def test_a_row_of_one_token_shows_nothing():
    require_causal(nn.Linear(1, 1), torch.zeros(1, 1, dtype=torch.long), "It")


# ---- towers


def two_towers(kind):
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    configs = {
        "gemma3": lambda blocks: transformers.Gemma3Config(
            text_config=SHARED | {"head_dim": 8},
            vision_config=vision | {"num_hidden_layers": blocks},
            mm_tokens_per_image=4,
        ),
        "llava": lambda blocks: transformers.LlavaConfig(
            text_config=SHARED | {"model_type": "llama"},
            vision_config=vision | {"num_hidden_layers": blocks, "model_type": "clip_vision_model"},
            image_token_index=5,
        ),
        "qwen2_vl": lambda blocks: transformers.Qwen2VLConfig(
            text_config=SHARED | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            vision_config={"depth": blocks, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 4},
        ),
    }
    return lambda blocks: transformers.AutoModelForImageTextToText.from_config(configs[kind](blocks))


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen2_vl"])
@pytest.mark.parametrize("blocks", [2, BLOCKS, 7])
def test_the_wrong_tower_is_never_taken_for_the_language_model(kind, blocks):
    model = two_towers(kind)(blocks).eval()
    name, found = find_blocks(model)
    assert len(found) == BLOCKS and "vision" not in name and "visual" not in name
    assert base_model(model).get_submodule(name) is found
    width = Harvester(model, ROWS, find_hookpoints(model, ["residual"]), skip_special=False).d_model
    assert width == SHARED["hidden_size"]


def test_without_a_tower_for_text_nothing_is_taken():
    class Config(transformers.PretrainedConfig):
        def get_text_config(self, decoder=None, encoder=None):
            return transformers.LlamaConfig(**SHARED)

    class Odd(nn.Module):
        config = Config(**IDS)

        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCAB, 8)
            self.vision = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(BLOCKS))})

        def get_input_embeddings(self):
            return self.embed

    with pytest.raises(ModelError, match=f"has no list of {BLOCKS} blocks"):
        find_blocks(Odd())


# ---- a whole run


@pytest.fixture
def future(here):
    """A config of a BERT on disk, whose text is not there: it is an error to read it."""
    save_model(here / "bert", lm(transformers.BertConfig(**NARROW | {"vocab_size": VOCAB_SIZE})))
    settings = (here / "tiny.toml").read_text()
    (here / "future.toml").write_text(re.sub(r"(?m)^name = .*$", f'name = "{here}/bert"', settings, count=1))
    return here


def test_a_run_of_a_model_that_sees_the_future_is_refused_before_text_is_read(future, call, monkeypatch):
    monkeypatch.setattr(tokens_stage, "read_rows", None)
    code, out, err = call("run", "future.toml", "--out", "runs/future")
    assert code == 2 and out == "" and not (future / "runs/future/tokens").exists()
    assert "BertLMHeadModel sees the future" in err and "Losses and circuits, which the eval stage measures" in err
    assert (
        "`groupsae tokens RUN`, then distances, group and train" in err
        and "groupsae eval RUN reconstruction similarity" in err
    )


def test_the_remedy_that_is_named_works(future, call):
    assert call("tokens", "future.toml", "--out", "runs/future")[0] == 0
    for stage in ("distances", "group", "train"):
        assert call(stage, "runs/future")[0] == 0
    assert call("eval", "runs/future", "reconstruction", "similarity")[0] == 0
    assert "sees the future" in call("eval", "runs/future", "losses")[2]
    assert "sees the future" in call("run", "runs/future")[2]
