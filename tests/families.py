"""A small model of every family of causal LMs that transformers builds from a config in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

VOCAB, WIDTH, BLOCKS, HEADS, LENGTH = 64, 32, 3, 4, 16
IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, **IDS}
NARROW = SIZES | {"intermediate_size": 48, "max_position_embeddings": LENGTH}
SHARED = NARROW | {"num_key_value_heads": 2}
GPT2_LIKE = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": LENGTH, **IDS}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2_LIKE),
    "gpt_neo": (
        "GPTNeo",
        {
            "hidden_size": WIDTH,
            "num_layers": BLOCKS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local", "global"], 1]],
            "max_position_embeddings": LENGTH,
            "window_size": 8,
            **IDS,
        },
    ),
    "gpt_neox": ("GPTNeoX", NARROW),
    "gptj": ("GPTJ", GPT2_LIKE | {"rotary_dim": 4}),
    "opt": (
        "OPT",
        SIZES | {"ffn_dim": 80, "max_position_embeddings": LENGTH, "word_embed_proj_dim": WIDTH},
    ),
    "bloom": ("Bloom", {"hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, **IDS}),
    "mpt": ("Mpt", {"d_model": WIDTH, "n_layers": BLOCKS, "n_heads": HEADS, "max_seq_len": LENGTH, **IDS}),
    "falcon": ("Falcon", SIZES),
    "falcon_sequential": ("Falcon", SIZES | {"parallel_attn": False, "multi_query": False, "alibi": True}),
    "falcon_grouped": ("Falcon", SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "llama": ("Llama", SHARED),
    "mistral": ("Mistral", SHARED),
    "mixtral": ("Mixtral", SHARED | EXPERTS),
    "qwen2": ("Qwen2", SHARED),
    "qwen2_moe": (
        "Qwen2Moe",
        SHARED
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "decoder_sparse_step": 1,
        },
    ),
    "qwen3": ("Qwen3", SHARED | {"head_dim": 16}),
    "gemma": ("Gemma", SHARED | {"head_dim": 16}),
    "gemma2": ("Gemma2", SHARED | {"head_dim": 16}),
    "gemma3": ("Gemma3Text", SHARED | {"head_dim": 16}),
    "phi": ("Phi", NARROW),
    "phi3": ("Phi3", SHARED),
    "stablelm": ("StableLm", SHARED),
    "olmo": ("Olmo", SHARED),
    "olmo2": ("Olmo2", SHARED),
    "granite": ("Granite", SHARED),
    "cohere": ("Cohere", SHARED),
    "smollm3": ("SmolLM3", SHARED),
    "gpt_bigcode": ("GPTBigCode", GPT2_LIKE),
    "codegen": ("CodeGen", GPT2_LIKE | {"rotary_dim": 4}),
    "xglm": (
        "XGLM",
        {
            "d_model": WIDTH,
            "num_layers": BLOCKS,
            "attention_heads": HEADS,
            "ffn_dim": 80,
            "max_position_embeddings": LENGTH,
            **IDS,
        },
    ),
    "mamba": ("Mamba", {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "state_size": 8, **IDS}),
    "mamba2": (
        "Mamba2",
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": BLOCKS,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "expand": 2,
            "n_groups": 1,
            "chunk_size": 8,
            **IDS,
        },
    ),
}
"""The name of the config class, and its values, by family."""

STATE_SPACE = ("mamba", "mamba2")


def family_config(family: str) -> Any:
    """The small config of a family."""
    kind, values = FAMILIES[family]
    return getattr(transformers, f"{kind}Config")(**values)


def family_model(family: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """A random causal LM of a family, in eval mode; its weights are larger than usual, so that layers differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(family_config(family), dtype=torch.float32, **options)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(5)
    return model.eval().requires_grad_(False)


def copies_of_outputs(model: nn.Module, base: nn.Module, names: list[str], ids_BT: torch.Tensor) -> dict[str, Any]:
    """What each module returns in a forward pass, copied while it returns."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple | list) else output).clone()

        return hook

    handles = [base.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        model(ids_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return found
