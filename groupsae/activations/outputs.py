"""Reads what modules return in a forward pass, and holds it as it was returned."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key", bound=Hashable)


class OutputReader(Generic[Key]):
    """Reads the outputs of modules, by key, during forward passes of a model.

    Some models write into a module's output after the module has returned: Falcon adds attention to
    the output of the MLP, other blocks do `x += ...`. A tensor's version counter shows it. The first
    time it happens to a module, the pass is repeated; from then on that module's output is copied at
    once. Modules in `written` are copied from the start. All other outputs are held without a copy.
    `calls` says how often each module ran in the last pass; of several outputs the last is held.
    """

    def __init__(self, modules: Mapping[Key, nn.Module], written: set[Key] | None = None) -> None:
        self.modules = dict(modules)
        self.written: set[Key] = set() if written is None else written
        self.calls: dict[Key, int] = {}

    def run(self, forward: Callable[[], Any], *, stop_early: bool = False) -> tuple[dict[Key, Any], Any]:
        """The outputs of one forward pass by key, and what `forward` gave.

        A key whose module did not run is missing. With `stop_early` the pass ends once all modules have
        returned, and `forward` gives None.
        """
        while True:
            held, versions, result = self._run_once(forward, stop_early)
            late = {key for key, output in held.items() if versions[key] != _versions(output)} - self.written
            if not late:
                return held, result
            self.written |= late

    def _run_once(
        self, forward: Callable[[], Any], stop_early: bool
    ) -> tuple[dict[Key, Any], dict[Key, list[int | None]], Any]:
        self.calls = dict.fromkeys(self.modules, 0)
        held: dict[Key, Any] = {}
        versions: dict[Key, list[int | None]] = {}

        def reader(key: Key) -> Callable[..., None]:
            def read_output(module: nn.Module, inputs: Any, output: Any) -> None:
                self.calls[key] += 1
                held[key] = copied(output) if key in self.written or _untracked(output) else output
                versions[key] = _versions(held[key])
                if stop_early and len(held) == len(self.modules):
                    raise _AllRead

            return read_output

        handles = [module.register_forward_hook(reader(key)) for key, module in self.modules.items()]
        try:
            return held, versions, forward()
        except _AllRead:
            return held, versions, None
        finally:
            for handle in handles:
                handle.remove()


class _AllRead(Exception):
    """Stops the forward pass once every output has been read."""


def copied(output: Any) -> Any:
    """What a module returned, with each of its tensors copied."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, tuple | list):
        parts = [part.clone() if isinstance(part, Tensor) else part for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output


def _tensors(output: Any) -> list[Tensor]:
    parts = output if isinstance(output, tuple | list) else [output]
    return [part for part in parts if isinstance(part, Tensor)]


def _versions(output: Any) -> list[int | None]:
    return [None if tensor.is_inference() else tensor._version for tensor in _tensors(output)]


def _untracked(output: Any) -> bool:
    """Whether a tensor was made in inference mode, where PyTorch counts no versions."""
    return torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in _tensors(output))
