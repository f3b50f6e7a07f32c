"""Puts something else in place of a module's output, and runs only what lies above it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from groupsae.activations.harvest import no_cache
from groupsae.activations.outputs import OutputReader, copied
from groupsae.errors import ModelError
from groupsae.model_structure import base_model, find_blocks, first_tensor, replaced_forward, with_first_tensor

Change = Callable[[Tensor], Tensor]
"""What is put in place of a hookpoint's output, as a function of it, (B, T, D) both."""


class CleanPass:
    """One forward pass over rows of ids (B, T): logits (B, T, V), hidden states, and every block's output.

    `spliced(hookpoint, x)` then gives the logits with `x` (B, T, D) as that hookpoint's output, and
    `spliced_together` those with several outputs changed: the blocks below are not computed again.
    """

    def __init__(self, model: nn.Module, ids_BT: Tensor, hookpoints: Sequence[str]) -> None:
        self.model, self.ids_BT = model, ids_BT
        self._blocks_name, self._blocks = _blocks(model)
        modules: dict[int | str, nn.Module] = dict(enumerate(self._blocks))
        modules |= {hookpoint: base_model(model).get_submodule(hookpoint) for hookpoint in hookpoints}
        reader = OutputReader(modules)
        self._outputs, self.logits_BTV = reader.run(self._logits)
        self._written = reader.written
        self.hidden: dict[str, Tensor] = {name: first_tensor(self._outputs[name]) for name in hookpoints}

    def spliced(self, hookpoint: str, x_BTD: Tensor) -> Tensor:
        """The logits (B, T, V) with `x_BTD` in place of the hookpoint's output."""
        return self.spliced_together({hookpoint: lambda _: x_BTD.clone() if self._is_written(hookpoint) else x_BTD})

    def spliced_together(self, changes: Mapping[str, Change]) -> Tensor:
        """The logits (B, T, V) with each hookpoint's output x (B, T, D) replaced by `changes[hookpoint](x)`.

        A change is given what the model computes there under the changes below it. Blocks below the
        lowest of the hookpoints are not computed again.
        """
        first = min(map(self._block_of, changes))
        with contextlib.ExitStack() as stack:
            for index in range(first):
                stack.enter_context(_returning(self._blocks[index], self._block_output(index)))
            for hookpoint, change in changes.items():
                if hookpoint == f"{self._blocks_name}.{first}" and self._alone_in_block(hookpoint, changes):
                    replaced = _replace(self._block_output(first), change)
                    stack.enter_context(_returning(self._blocks[first], replaced))
                else:
                    module = base_model(self.model).get_submodule(hookpoint)
                    stack.enter_context(_hook(module, partial(_replace, change=change)))
            return self._logits()

    def _logits(self) -> Tensor:
        return _logits_of(self.model, self.ids_BT)

    def _block_of(self, hookpoint: str) -> int:
        """The number of the block that the hookpoint lies in; 0 for one below all blocks."""
        prefix = f"{self._blocks_name}."
        number = hookpoint.removeprefix(prefix).partition(".")[0]
        return int(number) if hookpoint.startswith(prefix) and number.isdigit() else 0

    def _alone_in_block(self, hookpoint: str, changes: Mapping[str, Change]) -> bool:
        return sum(self._block_of(other) == self._block_of(hookpoint) for other in changes) == 1

    def _is_written(self, hookpoint: str) -> bool:
        """Whether the model writes into the hookpoint's output after the module has returned."""
        return hookpoint in self._written or hookpoint not in self.hidden

    def _block_output(self, index: int) -> Any:
        """What a block returned; a copy where the model writes into it."""
        output = self._outputs[index]
        return copied(output) if index in self._written else output


def edited_logits(model: nn.Module, ids_BT: Tensor, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """The logits (B, T, V) of one forward pass in which `edits[h](x)` stands in place of x (B, T, D) at hookpoint h.

    The edit of a hookpoint sees what the edits below it have made of its x. Gradients pass.
    """

    with contextlib.ExitStack() as stack:
        for hookpoint, edit in edits.items():
            module = base_model(model).get_submodule(hookpoint)
            stack.enter_context(_hook(module, partial(_replace, change=edit)))
        return _logits_of(model, ids_BT)


def _logits_of(model: nn.Module, ids_BT: Tensor) -> Tensor:
    output = model(ids_BT, **no_cache(model))
    logits = getattr(output, "logits", None)
    return first_tensor(output) if logits is None else logits


def _replace(output: Any, change: Change) -> Any:
    """What a module returned, with its hidden state changed, in the hidden state's precision.

    The model may write into what it is given, so a constant is given as a tensor with memory of its own.
    """
    hidden_BTD = first_tensor(output)
    changed_BTD = change(hidden_BTD).to(hidden_BTD.dtype)
    shares_memory = 0 in changed_BTD.stride()
    return with_first_tensor(
        output, changed_BTD.clone(memory_format=torch.contiguous_format) if shares_memory else changed_BTD
    )


def _blocks(model: nn.Module) -> tuple[str, Sequence[nn.Module]]:
    try:
        return find_blocks(model)
    except ModelError:
        return "", ()


@contextlib.contextmanager
def _hook(module: nn.Module, use: Callable[[Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _inputs, output: use(output))
    try:
        yield
    finally:
        handle.remove()


def _returning(module: nn.Module, output: Any) -> contextlib.AbstractContextManager[None]:
    """While the block runs, a module computes nothing and returns this."""
    return replaced_forward(module, lambda *_inputs, **_options: output)
