"""Files of other tools, read without trust: JSON, safetensors, pickles of tensors, npz.

Names and shapes are compared with what a format promises before anything is allocated. Tensors come back on the CPU in
float32, finite. A pickle is read by PyTorch's restricted unpickler, which builds tensors and plain containers only.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from groupsae.errors import RunError

MAX_COMPRESSION = 100
"""A weight file that unpacks to more than this many times its size is refused: weights do not compress so well."""
MAX_JSON_BYTES = 2**24
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_Header: TypeAlias = tuple[torch.dtype | None, tuple[int, ...]]
"""A tensor's dtype, None for one that holds no floating-point numbers, and shape."""
_KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Weights:
    """The tensors of one file, float32, by name; `sizes` are the dimensions that shapes had in common."""

    path: Path
    tensors: dict[str, Tensor]
    sizes: dict[str, int]
    half: str | None = None
    """The precision in which they lay, if it was half."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the weights should know."""
        return (f"weights are stored as {self.half}; they were read into float32",) if self.half else ()


@dataclass(frozen=True)
class Form:
    """What a file of weights must hold: shapes by name, in letters; equal letters are equal sizes, `` is one number.

    `sizes` are those that a config promises, `optional` tensors may be missing, `ignored` ones are left unread.
    """

    shapes: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises RunError if it is missing, damaged, or something else than an object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise RunError(f"{path} has {path.stat().st_size:,} bytes; a config has at most {MAX_JSON_BYTES:,}.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is missing or damaged: {error}. Copy or download it again.") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a {type(value).__name__} where a JSON object is needed.")
    return value


def key_of(config: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    """A key of a config, of this type. Raises RunError if it is missing or of another type."""
    if key not in config:
        raise RunError(f"{path} lacks the key {key!r}; it has {', '.join(sorted(map(str, config))) or 'none'}.")
    value = config[key]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise RunError(f"{path}: {key} = {value!r} where a {kind.__name__} is needed.")
    return value


def count_of(config: Mapping[str, Any], key: str, path: Path) -> int:
    """A key of a config that is a number from 1 on. Raises RunError for anything else."""
    value = key_of(config, key, int, path)
    if value < 1:
        raise RunError(f"{path}: {key} = {value}, where a number from 1 on is needed.")
    return value


# ---- weights


def read_safetensors(path: Path, form: Form) -> Weights:
    """The tensors of a safetensors file. Raises RunError for a damaged file, or one of another form."""
    try:
        with safe_open(path, framework="pt") as file:
            headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (_KINDS.get(one.get_dtype()), tuple(one.get_shape())) for name, one in headers.items()}
            names, sizes = _checked(found, form, path)
            return _weights(path, {name: file.get_tensor(name) for name in names}, sizes)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is missing or damaged: {error}. Copy or download it again.") from error


def read_pickle(path: Path, form: Form) -> Weights:
    """The tensors of a file that `torch.save` wrote. Raises RunError as `read_safetensors`, and for other objects."""
    values = load_pickle(path)
    if not isinstance(values, Mapping):
        raise RunError(f"{path} holds a {type(values).__name__} where tensors by name are needed.")
    tensors = {str(name): torch.as_tensor(v) for name, v in values.items() if isinstance(v, (Tensor, int, float))}
    strange = sorted(str(name) for name in values if str(name) not in tensors and str(name) not in form.ignored)
    if strange:
        raise RunError(f"{path} holds more than tensors: {', '.join(strange[:5])}. {_expected(form)}")
    for name, tensor in tensors.items():
        require_on_disk(path, name, tensor)
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    names, sizes = _checked(found, form, path)
    return _weights(path, {name: tensors[name] for name in names}, sizes)


def load_pickle(path: Path) -> Any:
    """What `torch.save` wrote: tensors, numbers, names and containers of them.

    The file is mapped, so that a damaged header allocates nothing. Raises RunError for a file that holds other objects,
    which unpickling would have to run code for, and for a damaged one.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can make the unpickler say anything
        if type(error).__name__ == "UnpicklingError":
            raise RunError(
                f"{path} is refused: it holds more than tensors, or is damaged ({_first_line(error)}). Loading other "
                "objects can run code. Save its state dict alone: torch.save(sae.state_dict(), path)."
            ) from error
        raise RunError(f"{path} is missing or damaged: {_first_line(error)}. Copy or download it again.") from error


def save_pickle(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as `torch.save` does, for tools that read nothing else."""
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def require_on_disk(path: Path, name: str, tensor: Tensor) -> None:
    """Raises RunError for a tensor that claims more numbers than the file has room for."""
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise RunError(
            f"{path} is damaged: {name} {tuple(tensor.shape)} promises more numbers than the file's "
            f"{path.stat().st_size:,} bytes hold."
        )


def read_npz(path: Path, form: Form) -> Weights:
    """The arrays of an npz file. Raises RunError as `read_safetensors`; pickled objects are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            found = {name: _npy_form(archive, info, path) for name, info in members.items()}
            names, sizes = _checked(found, form, path)
            arrays = {name: _npy(archive, members[name]) for name in names}
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, SyntaxError, NotImplementedError) as error:
        raise RunError(f"{path} is missing or damaged: {_first_line(error)}. Copy or download it again.") from error
    return _weights(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, sizes)


def _npy_form(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path
) -> tuple[torch.dtype | None, tuple[int, ...]]:
    """An array's dtype and shape from its header alone."""
    if info.file_size > MAX_COMPRESSION * max(info.compress_size, 1):
        raise RunError(f"{path} is refused: {info.filename} unpacks to more than {MAX_COMPRESSION} times its size.")
    with archive.open(info) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        promised = file.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise RunError(f"{path} is refused: {info.filename} holds Python objects, not numbers.")
    if promised != info.file_size:
        raise RunError(f"{path} is damaged: {info.filename} has {info.file_size:,} bytes, its header {promised:,}.")
    kinds = {"f8": torch.float64, "f4": torch.float32, "f2": torch.float16}
    return kinds.get(dtype.str[1:]), tuple(shape)


def _npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        return npy.read_array(file, allow_pickle=False)


def _checked(found: Mapping[str, _Header], form: Form, path: Path) -> tuple[list[str], dict[str, int]]:
    """The names to read, and the sizes of all letters. Raises RunError for other names, shapes or types."""
    missing = sorted(set(form.shapes) - set(found) - set(form.optional))
    strange = sorted(set(found) - set(form.shapes) - set(form.ignored))
    if missing:
        has = ", ".join(sorted(found)[:12]) or "nothing"
        raise RunError(f"{path} lacks {', '.join(missing)}; it holds {has}. {_expected(form)}")
    if strange:
        raise RunError(f"{path} holds {', '.join(strange[:6])}, which is not known what to do with. {_expected(form)}")
    names, sizes = [name for name in form.shapes if name in found], dict(form.sizes)
    for name in names:
        kind, shape = found[name]
        letters = form.shapes[name]
        fits = len(shape) == len(letters) and all(
            size > 0 and sizes.setdefault(letter, size) == size for letter, size in zip(letters, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join(f"{letter} = {sizes[letter]}" if letter in sizes else letter for letter in letters)
            raise RunError(f"{path}: {name} has the shape {shape} where ({wanted}) is needed. {_expected(form)}")
        if kind not in _FLOATS and letters:
            raise RunError(
                f"{path}: {name} does not hold floating-point numbers (float64, float32, float16, bfloat16)."
            )
    return names, sizes


def _weights(path: Path, tensors: dict[str, Tensor], sizes: dict[str, int]) -> Weights:
    halves = {_HALVES[tensor.dtype] for tensor in tensors.values() if tensor.dtype in _HALVES}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RunError(f"{path} is damaged: {name} holds NaN or infinity.")
        if tensor.is_floating_point():
            tensors[name] = tensor.to(torch.float32, copy=tensor.untyped_storage().filename is not None).contiguous()
    return Weights(path, tensors, sizes, " and ".join(sorted(halves)) or None)


def _expected(form: Form) -> str:
    shapes = ", ".join(f"{name} ({', '.join(letters)})" for name, letters in form.shapes.items())
    return f"Expected: {shapes}; D is the width of the activations, S the number of latents."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
