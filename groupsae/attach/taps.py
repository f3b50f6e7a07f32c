"""Changes what a module returns by wrapping its `forward`.

A hook would do, were it not for `torch.compile`: compiled code does not notice a hook that is added later. It does
notice another `forward`, is compiled again, and returns to the earlier code once the wrapper is gone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from groupsae.model_structure import replaced_forward


@contextlib.contextmanager
def before(module: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Call `see(args, kwargs)` before each forward pass of a module."""
    inner, see = module.forward, torch.compiler.disable(see)

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        see(args, kwargs)
        return inner(*args, **kwargs)

    with replaced_forward(module, forward):
        yield


@contextlib.contextmanager
def after(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Put `change(output)` in place of what a module returns."""
    inner, change = module.forward, torch.compiler.disable(change)

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return change(inner(*args, **kwargs))

    with replaced_forward(module, forward):
        yield
