"""Tensors in safetensors files: written from any device, read only if they are what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from groupsae.errors import RunError

_HEADER_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
"""How a file's header spells a type."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors, of any device, to one file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path, like: Mapping[str, Tensor], *, remedy: str) -> dict[str, Tensor]:
    """The tensors of a file, with exactly the names, shapes and dtypes of `like`, on the CPU.

    Raises RunError naming the file, what is wrong with it and the remedy; NaN and infinity are wrong.
    Nothing is allocated before the file's header agrees with `like`, which may lie on the meta device.
    """
    try:
        with safe_open(path, framework="pt") as file:
            _require_names(set(file.keys()), set(like), path, remedy)
            for name, wanted in like.items():
                found = file.get_slice(name)
                _require_form(
                    (found.get_dtype(), tuple(found.get_shape())), wanted, f"{path} is damaged: {name}", remedy
                )
            tensors = {name: file.get_tensor(name) for name in like}
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} is missing or damaged: {error}. {remedy}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RunError(f"{path} is damaged: {name} holds NaN or infinity. {remedy}")
    return tensors


def _require_names(found: set[str], wanted: set[str], path: Path, remedy: str) -> None:
    for name in sorted(found ^ wanted):
        raise RunError(f"{path} is damaged: it {'lacks' if name in wanted else 'has an unknown'} {name!r}. {remedy}")


def _require_form(found: tuple[str, tuple[int, ...]], wanted: Tensor, what: str, remedy: str) -> None:
    needed = (_HEADER_NAMES[wanted.dtype], tuple(wanted.shape))
    if found != needed:
        raise RunError(f"{what} is {found[0]} {found[1]} where {needed[0]} {needed[1]} is needed. {remedy}")
