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


_LENS_NAMES = {"": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}
_ATTENTION = {"attn", "attention", "self_attn"}


def to_transformer_lens(hookpoint: str) -> str:
    """TransformerLens' name of the same place: `layers.3` -> `blocks.3.hook_resid_post`."""
    found = re.fullmatch(r"[^.]+\.(\d+)(?:\.([^.]+))?", hookpoint)
    inside = found and ("attn" if found[2] in _ATTENTION else found[2] or "")
    if not found or inside not in _LENS_NAMES:
        raise HookpointError(f"{hookpoint!r} has no TransformerLens name; known: a block, its mlp, its attention.")
    return f"blocks.{found[1]}.{_LENS_NAMES[inside]}"
