"""The names that exports give are TransformerLens' names of the same tensors, on tiny random models of each kind."""

import os

import pytest
import torch
import transformers
from tiny import tiny_tokenizer

from groupsae.errors import HookpointError
from groupsae.hookpoints import _LENS_NAMES, to_transformer_lens
from groupsae.interop.model_facts import ModelFacts
from groupsae.model_structure import base_model

bridge = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens is not installed")
TOKENS = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
} | TOKENS
HEADS = SIZE | {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64} | TOKENS
SMALL = {"hidden_size": 32} | TOKENS
GEMMA = HEADS | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
GLOBAL = {"attention_types": [[["global"], 3]], "num_layers": 3, "num_heads": 4}
CONFIGS = {
    "gpt2": ("GPT2Config", GPT),
    "gpt_neo": ("GPTNeoConfig", SMALL | GLOBAL | {"intermediate_size": 64, "max_position_embeddings": 64}),
    "gptj": ("GPTJConfig", GPT | {"rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXConfig", SIZE),
    "llama": ("LlamaConfig", HEADS),
    "mistral": ("MistralConfig", HEADS),
    "mixtral": ("MixtralConfig", HEADS | {"num_local_experts": 4}),
    "qwen2": ("Qwen2Config", HEADS),
    "qwen3": ("Qwen3Config", HEADS | {"head_dim": 8}),
    "gemma": ("GemmaConfig", HEADS | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3_text": ("Gemma3TextConfig", GEMMA),
    "olmo": ("OlmoConfig", HEADS),
    "olmo2": ("Olmo2Config", HEADS),
    "phi": ("PhiConfig", SIZE),
    "phi3": ("Phi3Config", HEADS),
    "granite": ("GraniteConfig", HEADS | {"residual_multiplier": 0.22}),
    "bloom": ("BloomConfig", SMALL | {"n_layer": 3, "n_head": 4}),
    "opt": (
        "OPTConfig",
        SMALL
        | {"num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32}
        | {"max_position_embeddings": 64},
    ),
    "falcon": ("FalconConfig", SMALL | {"num_hidden_layers": 3, "num_attention_heads": 4}),
    "stablelm": ("StableLmConfig", HEADS),
    "starcoder2": ("Starcoder2Config", HEADS),
    "smollm3": ("SmolLM3Config", HEADS),
}
IDS = torch.randint(3, 290, (2, 12), generator=torch.Generator().manual_seed(0))


def test_every_architecture_of_the_table_is_compared():
    assert set(_LENS_NAMES) <= set(CONFIGS)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_names_are_of_the_same_tensor(model_type, tmp_path, measured):
    model = random_model(*CONFIGS[model_type])
    facts = ModelFacts.of(model, model_type)
    assert facts.model_type == model_type
    block = f"{facts.blocks}.1"
    places = [name for name in facts.modules if name == block or name.rpartition(".")[0] == block]
    seen = outputs(model, places)
    cache = lens_cache(model, tmp_path)
    named = {}
    for place in places:
        try:
            named[place] = to_transformer_lens(place, model_type)
        except HookpointError:
            continue
    assert block in named and set(named.values()) >= {
        f"blocks.1.{hook}" for hook in _LENS_NAMES.get(model_type, {}).values()
    }
    for place, name in named.items():
        off = (cache[name] - seen[place]).norm() / cache[name].norm()
        measured("transformer-lens", model_type, name.removeprefix("blocks.1."), off)


def random_model(config, values):
    """A random model whose layers differ, norms included."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**values)).eval()
    for parameter in model.parameters():
        parameter.data = parameter * 3 if parameter.ndim > 1 else parameter + 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def outputs(model, places):
    """What these modules return."""
    seen = {}
    for place in places:
        base_model(model).get_submodule(place).register_forward_hook(
            lambda module, inputs, output, place=place: seen.__setitem__(
                place, (output[0] if isinstance(output, tuple) else output).clone()
            )
        )
    model(IDS)
    return seen


def lens_cache(model, folder):
    """The tensors that TransformerLens sees."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    lens = bridge.TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    lens.enable_compatibility_mode(no_processing=True)
    return lens.run_with_cache(IDS)[1]
