"""What other tools' names of places depend on: a model's kind, and the paths of its blocks. No weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from groupsae.errors import HookpointError, ModelError
from groupsae.hookpoints import from_transformer_lens, to_transformer_lens
from groupsae.model_structure import base_model, find_blocks, text_config
from groupsae.models import load_skeleton, model_path


@dataclass(frozen=True)
class ModelFacts:
    """A causal LM, by hub id or the path of its directory: its `model_type`, where its blocks are, sizes, modules.

    `prefix` is the path of the base model in it, `blocks` that of the list of blocks below the base model.
    """

    name: str
    model_type: str
    prefix: str
    blocks: str
    num_blocks: int
    d_model: int
    modules: frozenset[str]
    """Paths below the base model."""

    @classmethod
    def load(cls, name: str, **options: Any) -> ModelFacts:
        """Those of a hub id or directory, from its config alone; options are `load_skeleton`'s.

        Raises ModelError if there is none.
        """
        return cls.of(load_skeleton(name, **options), model_path(name))

    @classmethod
    def find(cls, name: str | None, **options: Any) -> ModelFacts | None:
        """Those of a model if its config can be had, else None."""
        try:
            return cls.load(name, **options) if name else None
        except ModelError:
            return None

    @classmethod
    def of(cls, model: nn.Module, name: str) -> ModelFacts:
        """Those of a model in memory."""
        base, text = base_model(model), text_config(model)
        path, blocks = find_blocks(model)
        prefix = next(path for path, module in model.named_modules() if module is base)
        return cls(
            name=name,
            model_type=text.model_type,
            prefix=prefix,
            blocks=path,
            num_blocks=len(blocks),
            d_model=text.hidden_size,
            modules=frozenset(path for path, _ in base.named_modules() if path),
        )

    def in_causal_lm(self, hookpoint: str) -> str:
        """A hookpoint's path in the causal LM: `model.layers.3`."""
        return f"{self.prefix}.{hookpoint}" if self.prefix else hookpoint

    def to_transformer_lens(self, hookpoint: str) -> str:
        """TransformerLens' name of the same tensor. Raises HookpointError where it has none."""
        return to_transformer_lens(hookpoint, self.model_type)

    def hookpoint(self, name: str) -> str:
        """The hookpoint that another tool's name stands for. Raises HookpointError if this model has none such."""
        found = name
        if name.startswith("blocks.") and self.blocks != "blocks":
            found = from_transformer_lens(name, self.blocks, self.model_type)
        elif name not in self.modules:
            found = name.removeprefix(f"{self.prefix}.") if self.prefix else name
        if found not in self.modules:
            raise HookpointError(
                f"Model {self.name!r} has no module {found!r} ({name!r} in the files); it has {self.num_blocks} "
                f"blocks, {self.blocks}.0 ... {self.blocks}.{self.num_blocks - 1}."
            )
        return found


def hub_name(name: str) -> str:
    """The hub id of a model that a tool calls by TransformerLens' short name; other names are left as they are."""
    if "/" in name:
        return name
    owners = {"pythia-": "EleutherAI", "gemma-": "google", "gpt-neo-": "EleutherAI", "gpt-j-": "EleutherAI"}
    owner = next((owner for start, owner in owners.items() if name.startswith(start)), None)
    return f"{owner}/{name}" if owner else {"gpt2-small": "gpt2"}.get(name, name)


def plain_hookpoint(name: str) -> str:
    """The hookpoint of another tool's name without a model to ask: blocks are then taken to be `layers.N`.

    Raises HookpointError for what a block holds, whose name depends on the architecture.
    """
    if name.startswith("blocks."):
        return from_transformer_lens(name, "layers")
    for prefix in ("gpt_neox.", "transformer.", "model."):
        if name.startswith(prefix) and not name.startswith(("model.decoder.", "model.language_model.")):
            return name.removeprefix(prefix)
    return name.removeprefix("model.")
