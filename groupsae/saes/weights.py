"""Tensors in safetensors files: written from any device, read only if they are what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from groupsae.errors import RunError


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors, of any device, to one file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path, like: Mapping[str, Tensor], *, remedy: str) -> dict[str, Tensor]:
    """The tensors of a file, with exactly the names, shapes and dtypes of `like`, on the CPU.

    Raises RunError naming the file, what is wrong with it and the remedy; NaN and infinity are wrong.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} is missing or damaged: {error}. {remedy}") from error
    for name in sorted(set(like) ^ set(tensors)):
        raise RunError(f"{path} is damaged: it {'lacks' if name in like else 'has an unknown'} {name!r}. {remedy}")
    for name, tensor in tensors.items():
        wanted = like[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise RunError(f"{path} is damaged: {name} is {_form(tensor)} where {_form(wanted)} is needed. {remedy}")
        if not torch.isfinite(tensor).all():
            raise RunError(f"{path} is damaged: {name} holds NaN or infinity. {remedy}")
    return tensors


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
