"""The modules of a language model: find its blocks, name its hookpoints, read and replace what a module returns.

Works with every Hugging Face causal LM whose blocks sit in one `ModuleList`, whether the blocks
return a tensor (most of transformers 5) or a tuple.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from groupsae.errors import HookpointError, ModelError
from groupsae.hookpoints import expand

OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech")
"""Parts of the names of modules that read something else than text."""


def longest_row(model: nn.Module) -> int | None:
    """The most tokens that a model reads at once; None if its config sets no limit."""
    config = text_config(model)
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def text_config(model: nn.Module) -> Any:
    """The config of the language model, which may be a part of the model's config; None for plain modules."""
    config = getattr(model, "config", None)
    find = getattr(config, "get_text_config", None)
    return find(decoder=True) if find else config


def base_model(model: nn.Module) -> nn.Module:
    """The model without its head: what hookpoints are counted from.

    Of a model that peft wrapped it is that of the model inside, so hookpoints have the same names. Raises
    ModelError for an adapter that puts tokens of its own before the text.
    """
    wrapped: Any = model
    if hasattr(model, "get_base_model"):
        if getattr(model, "active_peft_config", None) is not None and wrapped.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"{type(model).__name__} holds a prompt or prefix adapter, whose own positions come before the text. "
                "Adapters inside the modules, such as LoRA, can be used."
            )
        model = wrapped.get_base_model()
    return getattr(model, "base_model", model)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path below the base model and the list of the decoder blocks.

    It is the shallowest `ModuleList` as long as the config's number of layers (the longest one,
    where there is no config). A list that encodes images or sound is never taken. Raises ModelError if
    there is none.
    """
    lists = [(name, m) for name, m in _language_modules(model) if isinstance(m, nn.ModuleList) and len(m)]
    longest = max((len(blocks) for _, blocks in lists), default=0)
    count = getattr(text_config(model), "num_hidden_layers", None) or longest
    fitting = [(name, blocks) for name, blocks in lists if len(blocks) == count]
    if not fitting:
        found = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists) or "none"
        raise ModelError(
            f"{type(model).__name__} has no list of {count} blocks; module lists found: {found}. "
            "A model whose blocks sit in one ModuleList is needed."
        )
    return min(fitting, key=lambda item: item[0].count("."))


def _language_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules below the base model that belong to the language model, by their path.

    In a model with several towers it is the one that holds the embedding of tokens.
    """
    base = base_model(model)
    text = text_config(model)
    if text is None or text is getattr(model, "config", None):
        yield from base.named_modules()
        return
    whole: Any = model
    embedding = whole.get_input_embeddings()
    owner = next((name.rpartition(".")[0] for name, module in base.named_modules() if module is embedding), None)
    for name, module in base.named_modules():
        inside = owner is not None and (not owner or name == owner or name.startswith(f"{owner}."))
        if inside and not any(word in part for part in name.split(".") for word in OTHER_TOWERS):
            yield name, module


def residual_stream(model: nn.Module) -> tuple[str, ...]:
    """The hookpoints of the residual stream after every block: `layers.0`, `layers.1`, ..."""
    name, blocks = find_blocks(model)
    return tuple(f"{name}.{index}" for index in range(len(blocks)))


def find_hookpoints(model: nn.Module, patterns: Iterable[str]) -> tuple[str, ...]:
    """The hookpoints that patterns select: `residual` is every block but the last, others are paths.

    Raises HookpointError, naming the nearest path, for a pattern that selects nothing.
    """
    names = [name for name, _ in base_model(model).named_modules() if name]
    chosen: list[str] = []
    for pattern in patterns:
        if pattern == "residual":
            pattern_names = residual_stream(model)[:-1]
            if not pattern_names:
                raise HookpointError(
                    "The model has one block only, and the last block is not grouped; name hookpoints yourself."
                )
            chosen.extend(pattern_names)
        else:
            chosen.extend(expand([pattern], names, owner=type(model).__name__))
    return expand(dict.fromkeys(chosen), names)


@torch.no_grad()
def require_causal(model: nn.Module, ids_BT: Tensor, purpose: str) -> None:
    """Raises ModelError if a model's predictions depend on later tokens. `purpose` names what needs that they do not.

    Two passes over the first row of ids that differ in the last token must give the same logits before it.
    """
    if ids_BT.shape[1] < 2:
        return
    ids_1T = ids_BT[:1]
    other_1T = ids_1T.clone()
    other_1T[0, -1] = (ids_1T[0, -1] + 1) % (getattr(text_config(model), "vocab_size", None) or 2)
    logits_TV, other_TV = (_logits(model, ids).float()[0] for ids in (ids_1T, other_1T))
    earlier = (logits_TV[:-1] - other_TV[:-1]).abs().max()
    rounding = max(64 * torch.finfo(torch.float32).eps, 4 * torch.finfo(next(model.parameters()).dtype).eps)
    if earlier > rounding * max(1.0, logits_TV.abs().max().item()):
        raise ModelError(
            f"{type(model).__name__} sees the future: another last token changes its predictions before it, by up to "
            f"{earlier:.3g}. {purpose} would mean nothing. Only causal language models can be evaluated so; of this "
            "one, reconstruction and similarity can be. If it was trained to be causal, say so in its config.json "
            "(is_decoder = true)."
        )


def _logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    options = {"use_cache": False} if hasattr(model, "config") else {}
    output = model(ids_BT, **options)
    return first_tensor(output) if getattr(output, "logits", None) is None else output.logits


def first_tensor(output: Any) -> Tensor:
    """The hidden state in what a module returned: the tensor itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def with_first_tensor(output: Any, hidden: Tensor) -> Any:
    """What a module returned, with its hidden state replaced; the type stays as found."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


@contextlib.contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While the block runs, a module computes this instead of its own forward pass."""
    own = vars(module).get("forward")  # set where a model is split over devices: it must come back
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]
