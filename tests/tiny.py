"""Tiny language models and tokenizers, made in memory: four families, no download."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from groupsae.text.tokens import TokenRows

FAMILIES = ("gpt_neox", "gpt2", "llama", "gptj")
BLOCKS_NAME = {"gpt_neox": "layers", "gpt2": "h", "llama": "layers", "gptj": "h"}
MLP_NAME = {"gpt_neox": "mlp", "gpt2": "mlp", "llama": "mlp", "gptj": "mlp"}
END_OF_TEXT, BEGIN_OF_TEXT = "<|endoftext|>", "<|begin|>"
VOCAB_SIZE, CONTEXT_LENGTH = 300, 64
SENTENCE = "the layer reads what a layer below it wrote and adds its own part to that stream of numbers"


def tiny_model(family: str = "gpt_neox", *, layers: int = 3, d_model: int = 16, seed: int = 0) -> nn.Module:
    """A random causal LM of one of `FAMILIES`, in eval mode; the same arguments give the same weights."""
    common = {"vocab_size": VOCAB_SIZE, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": None}
    wide = {
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * d_model,
        "max_position_embeddings": CONTEXT_LENGTH,
    }
    narrow = {"n_embd": d_model, "n_layer": layers, "n_head": 2, "n_positions": CONTEXT_LENGTH}
    config = {
        "gpt_neox": lambda: GPTNeoXConfig(**wide, **common),
        "gpt2": lambda: GPT2Config(**narrow, **common),
        "llama": lambda: LlamaConfig(**wide, num_key_value_heads=1, **common),
        "gptj": lambda: GPTJConfig(**narrow, rotary_dim=4, **common),
    }[family]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # the usual 0.02 makes all layers nearly alike
            parameter.data.mul_(3)
    return model.eval().requires_grad_(False)


def tiny_tokenizer(*, begin: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer with a token per byte, id 256 for the end of text and, if `begin`, 257 before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT, BEGIN_OF_TEXT] if begin else [END_OF_TEXT])
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN_OF_TEXT} $A", special_tokens=[(BEGIN_OF_TEXT, 257)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=BEGIN_OF_TEXT if begin else None
    )


def save_model(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """The folder, holding what `load_model` reads."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def tiny_rows(rows: int = 12, length: int = 8, *, seed: int = 0, special_ids: tuple[int, ...] = ()) -> TokenRows:
    """Rows of random ids, with as many held-out rows."""

    def ids(offset: int) -> np.ndarray:
        return np.random.default_rng(2 * seed + offset).integers(0, 256, (rows, length)).astype(np.uint16)

    return TokenRows(ids(0), special_ids, rows, TokenRows(ids(1), special_ids, rows))


def tiny_text(words: int = 200, seed: int = 0) -> str:
    """Words at random; the same arguments give the same text."""
    choose = random.Random(seed)
    return " ".join(choose.choice(SENTENCE.split()) for _ in range(words))
