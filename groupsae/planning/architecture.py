"""What a language model's config says about its size: enough to price a run without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from groupsae.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """The numbers of a decoder-only language model.

    `num_layers` blocks of width `d_model`; `num_heads` heads of `head_dim`, `num_kv_heads` of keys and
    values; an MLP of `intermediate_size`, `gated` if it has three matrices; `vocab_size` tokens and
    at most `context_length` positions. `biases`, `tied` embeddings and `learned_positions` only change
    the number of parameters.
    """

    num_layers: int
    d_model: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    gated: bool = False
    biases: bool = True
    tied: bool = False
    learned_positions: bool = False

    @classmethod
    def from_hf_config(cls, config: Any) -> Architecture:
        """The architecture in a Hugging Face config: the object, or the dict of a config.json.

        Reads the keys of GPT-NeoX, GPT-2 and Llama and of models that are built like them; biases and
        extra norms of others may be off by a few thousandths of the parameters. Raises ConfigError
        naming a key that is missing.
        """
        values = dict(config) if isinstance(config, Mapping) else config.to_dict()
        values = values.get("text_config") or values
        d_model = _first(values, "hidden_size", "n_embd")
        num_heads = _first(values, "num_attention_heads", "n_head")
        gated = "rms_norm_eps" in values
        return cls(
            num_layers=_first(values, "num_hidden_layers", "n_layer"),
            d_model=d_model,
            intermediate_size=_first(values, "intermediate_size", "n_inner", default=4 * d_model),
            num_heads=num_heads,
            num_kv_heads=_first(values, "num_key_value_heads", default=num_heads),
            head_dim=_first(values, "head_dim", default=d_model // num_heads),
            vocab_size=_first(values, "vocab_size"),
            context_length=_first(values, "max_position_embeddings", "n_positions"),
            gated=gated,
            biases=not gated,
            tied=bool(values.get("tie_word_embeddings", "n_embd" in values)),
            learned_positions="n_embd" in values,
        )

    @property
    def block_parameters(self) -> int:
        """Weights of one block: attention, MLP, two norms."""
        heads, shared = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        weights = self.d_model * (2 * heads + 2 * shared + (3 if self.gated else 2) * self.intermediate_size)
        biases = heads + 2 * shared + 2 * self.d_model + self.intermediate_size
        return weights + (biases if self.biases else 0) + 2 * self._norm_parameters

    @property
    def parameters(self) -> int:
        """Weights of the whole model, head included: 162,322,944 for pythia-160m."""
        embeddings = self.vocab_size * self.d_model * (1 if self.tied else 2)
        positions = self.context_length * self.d_model if self.learned_positions else 0
        return self.num_layers * self.block_parameters + embeddings + positions + self._norm_parameters

    def parameter_bytes(self, bytes_per_number: int) -> int:
        """Bytes of the weights; 4 per number for float32, 2 for bfloat16 and float16."""
        return self.parameters * bytes_per_number

    @property
    def _norm_parameters(self) -> int:
        return self.d_model * (2 if self.biases else 1)

    def block_flops(self, context_length: int) -> int:
        """FLOPs per token of one block's forward pass: 24 D^2 + 4 T D for an MLP of 4 D and as many key heads.

            2 D (2 H + 2 H_kv) + 2 D I (2, or 3 if gated) + 4 T H,    H = heads * head_dim

        Attention is counted over all T positions of a row, as the published count does.
        """
        heads, shared = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        matrices = 2 * (heads + shared) + (3 if self.gated else 2) * self.intermediate_size
        return 2 * self.d_model * matrices + 4 * context_length * heads


def _first(values: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    for key in keys:
        if values.get(key) is not None:
            return int(values[key])
    if default is not None:
        return default
    raise ConfigError(
        f"The model's config has no {' or '.join(keys)}; it has {', '.join(sorted(values)) or 'nothing'}. "
        "A decoder-only model's config.json is needed."
    )
