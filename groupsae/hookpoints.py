"""Names of places in a model: wildcards, natural order, and TransformerLens spelling.

A hookpoint is the path of a module below the base model (`model.base_model`) whose output is
read: `layers.3` is the residual stream after block 3 of a GPT-NeoX or Llama, `h.3` of a GPT-2,
`layers.3.mlp` an MLP's output.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from groupsae.errors import HookpointError, meant

_NUMBER = re.compile(r"(\d+)")


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts `layers.10` after `layers.9`."""
    return [(1, int(part)) if part.isdecimal() else (0, part) for part in _NUMBER.split(name)]


def expand(patterns: Iterable[str], available: Sequence[str], *, owner: str = "the model") -> tuple[str, ...]:
    """The available names that the patterns select, each once, in natural order.

    `*` matches within one part of a path only: `layers.*` selects blocks, not what lies in them.
    Raises HookpointError for a pattern that selects nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        parts = pattern.split(".")
        found = [name for name in available if _matches(name.split("."), parts)]
        if not found:
            raise HookpointError(_nothing_matches(pattern, available, owner))
        chosen.update(found)
    return tuple(sorted(chosen, key=natural_key))


def _matches(name: list[str], pattern: list[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatch.fnmatchcase, name, pattern))


def _nothing_matches(pattern: str, available: Sequence[str], owner: str) -> str:
    ordered = sorted(available, key=natural_key)
    numbered = [name for name in ordered if re.fullmatch(r"[^.]+\.\d+", name)] or ordered
    span = f"{numbered[0]} ... {numbered[-1]}" if numbered else "no module"
    return f"{pattern!r} matches nothing in {owner}.{meant(pattern, ordered)} It has {span}."


def layer_index(hookpoint: str) -> int:
    """The first number in a hookpoint's path: 3 for `layers.3.mlp`. Raises HookpointError without one."""
    found = _NUMBER.search(hookpoint)
    if not found:
        raise HookpointError(f"{hookpoint!r} holds no layer number; expected a path such as 'layers.3'.")
    return int(found.group())


_RESIDUAL, _MLP, _ATTENTION = "hook_resid_post", "hook_mlp_out", "hook_attn_out"
_PLAIN = {"mlp": _MLP, "self_attn": _ATTENTION}
_GPT = {"mlp": _MLP, "attn": _ATTENTION}
_AFTER_NORM = {"post_feedforward_layernorm": _MLP, "post_attention_layernorm": _ATTENTION}
_LENS_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("gemma", "llama", "mistral", "mixtral", "olmo", "phi", "phi3", "qwen2", "qwen3"), _PLAIN),
    **dict.fromkeys(("smollm3", "stablelm", "starcoder2"), _PLAIN),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj"), _GPT),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2"), _AFTER_NORM),
    "gpt_neox": {"mlp": _MLP, "attention": _ATTENTION},
    "falcon": {"mlp": _MLP, "self_attention": _ATTENTION},
    "opt": {"self_attn": _ATTENTION},
}
"""By `model_type`, the modules of a block whose output TransformerLens names, beside the block itself.

Compared on tiny random models with TransformerLens 3.9 (`tests/peers/test_hook_names.py`). In Gemma 2, Gemma 3 and
OLMo 2 its hooks come after a further norm; Granite multiplies and BLOOM adds the residual, so neither is listed.
"""
_OTHER_RESIDUALS = ("cohere",)
"""Where the residual stream of TransformerLens 3.9 itself differs from transformers' (by 4 % in Cohere)."""


def to_transformer_lens(hookpoint: str, model_type: str | None = None) -> str:
    """TransformerLens' name of the same tensor: `layers.3` -> `blocks.3.hook_resid_post`.

    What a block holds is named by architecture, the config's `model_type`. Raises HookpointError, saying why, where
    TransformerLens names no tensor or another one.
    """
    if model_type in _OTHER_RESIDUALS:
        raise HookpointError(f"TransformerLens computes another residual stream for {model_type!r} models.")
    found = re.fullmatch(r"(?:[^.\d]+\.)+(\d+)(?:\.([^.]+))?", hookpoint)
    inside = found and found[2]
    known = _LENS_NAMES.get(model_type or "", {})
    if not found or (inside and inside not in known):
        of = f"of a {model_type!r} model" if model_type else "of an unknown architecture"
        named = ", ".join(["a block", *known])
        raise HookpointError(f"{hookpoint!r} {of} has no TransformerLens name; known are: {named}.")
    return f"blocks.{found[1]}.{known[inside] if inside else _RESIDUAL}"


def from_transformer_lens(name: str, blocks: str, model_type: str | None = None) -> str:
    """The hookpoint whose output is the tensor that TransformerLens names; `blocks` is the path of the block list.

    Raises HookpointError, saying why, for a name that stands for no module's output.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if not found:
        raise HookpointError(f"{name!r} is no TransformerLens name of a place in a block, such as {_EXAMPLE!r}.")
    layer, hook = int(found[1]), found[2]
    if hook == _RESIDUAL or (hook == "hook_resid_pre" and layer):
        return f"{blocks}.{layer - (hook != _RESIDUAL)}"
    modules = {named: module for module, named in _LENS_NAMES.get(model_type or "", {}).items()}
    if hook not in modules:
        of = f"a {model_type!r} model" if model_type else "a model of unknown architecture"
        raise HookpointError(
            f"{name!r} is the output of no module of {of}; that is what can be read. Known are "
            f"{', '.join((_RESIDUAL, 'hook_resid_pre (from block 1 on)', *modules))}."
        )
    return f"{blocks}.{layer}.{modules[hook]}"


_EXAMPLE = "blocks.3.hook_resid_post"
