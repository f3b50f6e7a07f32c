"""The sizes of a language model, counted from its modules: enough to price a run without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from groupsae.errors import ConfigError

NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
RECURRENT = (
    "Mixer",
    "Mamba",
    "Mamba2",
    "MambaLayer",
    "DeltaNet",
    "RecurrentBlock",
    "LinearAttention",
    "LightningAttention",
    "RwkvSelfAttention",
)
"""Ends of the names of classes that hold a recurrence over positions, whose FLOPs no matrix tells."""


@dataclass(frozen=True)
class Block:
    """One block: its parameters, and the FLOPs of its forward pass.

    `token_flops` are those of every token; `position_flops` those of every token for each position of its row.
    """

    parameters: int
    token_flops: int
    position_flops: int


@dataclass(frozen=True)
class Architecture:
    """The numbers of a decoder-only language model.

    Blocks of width `d_model`, whose widest matrix takes `intermediate_size` numbers per token (of all
    experts that a token uses); `vocab_size` tokens; `parameters` in all, head and embeddings included,
    shared ones once. `unpriced` says what the FLOPs leave out.
    """

    blocks: tuple[Block, ...]
    d_model: int
    intermediate_size: int
    vocab_size: int
    parameters: int
    unpriced: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, blocks: Sequence[nn.Module]) -> Architecture:
        """Count a model, whose weights may be on the meta device. `blocks` are its decoder blocks.

        A matrix costs 2 FLOPs per weight and token. Experts count in the share that a token uses. Attention
        is counted over all positions of a row, as the published count does. Recurrences over positions,
        and whatever the config does not tell the size of, are named in `unpriced`. Raises ConfigError if
        the width of the model cannot be told.
        """
        sizes = _Sizes(getattr(model, "config", None))
        counted = tuple(_block(block, sizes) for block in blocks)
        embedding = _embedding(model)
        d_model = sizes.number("hidden_size", "d_model", "n_embd") or (
            embedding.shape[1] if embedding is not None else 0
        )
        if not d_model:
            raise ConfigError(
                f"The width of {type(model).__name__} cannot be told: its config has no hidden_size, and it has no "
                "embedding of tokens. A decoder-only language model is needed."
            )
        return cls(
            blocks=counted,
            d_model=d_model,
            intermediate_size=max((_widest(block, sizes) for block in blocks), default=0) or 4 * d_model,
            vocab_size=sizes.number("vocab_size") or (len(embedding) if embedding is not None else 0),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            unpriced=tuple(dict.fromkeys(sizes.unpriced)),
        )

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def parameter_bytes(self, bytes_per_number: int) -> int:
        """Bytes of the weights; 4 per number for float32, 2 for bfloat16 and float16."""
        return self.parameters * bytes_per_number

    def forward_flops(self, context_length: int, num_blocks: int | None = None) -> int:
        """FLOPs per token of a forward pass through the first blocks, or all of them, without the head.

        24 D^2 + 4 T D per block with an MLP of 4 D and as many heads of keys as of queries.
        """
        return sum(block.token_flops + context_length * block.position_flops for block in self.blocks[:num_blocks])


class _Sizes:
    """Reads numbers of a model's config by transformers' own names, and notes what cannot be told."""

    def __init__(self, config: Any) -> None:
        text = getattr(config, "get_text_config", None)
        self._config = text(decoder=True) if text else config
        self.unpriced: list[str] = []

    def number(self, *names: str) -> int:
        """The first of these that the config has; 0 if it has none."""
        found = (getattr(self._config, name, None) for name in names)
        return next((value for value in found if isinstance(value, int) and value > 0), 0)

    def attention_width(self, attention: nn.Module) -> int:
        """Numbers per token and position that attention multiplies: heads * (width of keys + width of values) / 2."""
        heads = self.number("num_attention_heads", "n_head", "n_heads", "num_heads")
        width = self.number("hidden_size", "d_model", "n_embd")
        if self.number("v_head_dim") and self.number("qk_rope_head_dim"):
            keys = self.number("qk_nope_head_dim") + self.number("qk_rope_head_dim")
            return heads * (keys + self.number("v_head_dim")) // 2
        own = getattr(attention, "head_dim", None)
        each = own if isinstance(own, int) else self.number("head_dim") or (width // heads if heads else 0)
        if not heads * each:
            self.unpriced.append(
                f"attention over positions ({type(attention).__name__}: its heads are not in the config)"
            )
        return heads * each

    def expert_share(self, module: nn.Module) -> float:
        """The share of the experts' weights that a token uses."""
        per_token, experts = self.number(*EXPERTS_PER_TOKEN), self.number(*NUM_EXPERTS)
        if per_token and experts:
            return per_token / experts
        self.unpriced.append(
            f"the share of experts that a token uses ({type(module).__name__}: num_experts_per_tok is not in the "
            "config; all experts are counted)"
        )
        return 1.0


def _block(block: nn.Module, sizes: _Sizes) -> Block:
    attentions = [module for module in block.modules() if _is_attention(module)]
    for module in block.modules():
        if type(module).__name__.endswith(RECURRENT):
            sizes.unpriced.append(f"the recurrence over positions in {type(module).__name__}")
    return Block(
        parameters=sum(parameter.numel() for parameter in block.parameters()),
        token_flops=round(sum(2 * share * weight.numel() for weight, share in _matrices(block, sizes))),
        position_flops=4 * sum(map(sizes.attention_width, attentions)),
    )


def _matrices(block: nn.Module, sizes: _Sizes) -> Iterator[tuple[nn.Parameter, float]]:
    """Every weight that tokens are multiplied by, with the share of it that one token uses."""
    for path, module in block.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        in_experts = _in_experts(path) or "Experts" in type(module).__name__
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim >= 2 and (in_experts or name == "weight"):
                yield weight, sizes.expert_share(module) if in_experts else 1.0


def _in_experts(path: str) -> bool:
    return "experts" in path.split(".")


def _is_attention(module: nn.Module) -> bool:
    """Whether a module is the innermost one that attends: not one that only holds another, nor one without weights."""
    name = type(module).__name__
    if not any(part in name for part in ("Attention", "Attn")) or name.endswith(RECURRENT):
        return False
    if next(module.parameters(), None) is None:
        return False
    return not any(_is_attention(child) for child in module.modules() if child is not module)


def _widest(block: nn.Module, sizes: _Sizes) -> int:
    """The most numbers per token that a matrix of the block takes: the width inside the MLP."""
    widest = 0
    for path, module in block.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 2 and name == "weight" and not isinstance(module, nn.Embedding):
                inputs = weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1]
                widest = max(widest, inputs * (sizes.number(*EXPERTS_PER_TOKEN) or 1 if _in_experts(path) else 1))
            elif weight.ndim == 3 and "Experts" in type(module).__name__ and "down" in name:
                inside = weight[0].numel() // max(1, sizes.number("hidden_size"))
                widest = max(widest, inside * (sizes.number(*EXPERTS_PER_TOKEN) or 1))
    return widest


def _embedding(model: nn.Module) -> nn.Parameter | None:
    find = getattr(model, "get_input_embeddings", None)
    return getattr(find(), "weight", None) if find else None
