"""What a GGUF file holds: its architecture, tensors and their types, read from its header alone."""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from groupsae.errors import FitError, ModelError
from groupsae.oom import free_memory

# Numbers per block and bytes per block of each type of tensor, by its number in the file.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_GIB = 2**30


@dataclass(frozen=True)
class GGUFFacts:
    """What a file holds: `tensors` counts its tensors by type; all but F32, F16 and BF16 are dequantized on loading."""

    file: str
    architecture: str
    parameters: int
    file_bytes: int
    tensors: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON."""
        return asdict(self)


def read_gguf(path: Path) -> GGUFFacts:
    """The facts of a GGUF file. Raises ModelError if it is none, is damaged, or is shorter than its header says."""
    size = path.stat().st_size
    if size < 24:
        raise ModelError(f"{path} is no GGUF file: it has {size} bytes. Download it again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ModelError(f"{path} is no GGUF file: it does not begin with the letters GGUF.")
        try:
            keys, tensors, start = _header(_Cursor(data))
        except (struct.error, ValueError, OverflowError) as error:
            raise ModelError(
                f"The header of {path} is truncated or damaged ({error}); the file has {size:,} bytes. "
                "Download it again."
            ) from None
    end = start + max((offset + _tensor_bytes(kind, count) for kind, count, offset in tensors), default=0)
    if end > size:
        raise ModelError(
            f"{path} is truncated: its header lists tensors up to byte {end:,}, but it has {size:,} bytes. "
            "Download it again."
        )
    return GGUFFacts(
        file=path.name,
        architecture=str(keys.get("general.architecture", "unknown")),
        parameters=sum(count for _, count, _ in tensors),
        file_bytes=size,
        tensors=dict(Counter(TENSOR_TYPES[kind][0] for kind, _, _ in tensors)),
    )


def require_loadable(facts: GGUFFacts, bytes_per_number: int) -> None:
    """Raises ModelError if transformers cannot read the file here, FitError if its weights do not fit into memory."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as SUPPORTED

    # transformers names some architectures with an underline that the files write without one.
    names = {name.replace("_", "").replace("-", "") for name in SUPPORTED}
    if facts.architecture.replace("_", "").replace("-", "") not in names:
        raise ModelError(
            f"{facts.file} holds a model of architecture {facts.architecture!r}, which transformers does not read from "
            f"GGUF files. It reads {', '.join(sorted(SUPPORTED))}. Use the model's original weights."
        )
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ModelError(
            f"Reading {facts.file} needs the package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}, "
            "not installed here. Install with: pip install 'groupsae[gguf]'"
        )
    needed, free = facts.parameters * bytes_per_number, free_memory()
    if free is not None and needed > free:
        raise FitError(
            f"{facts.file} holds {facts.parameters:,} parameters, {needed / _GIB:.3g} GiB once dequantized; "
            f"{free / _GIB:.3g} GiB of main memory are free. Use model.dtype = 'bfloat16', a smaller model, or a "
            "larger machine."
        )


class _Cursor:
    """Reads values one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 4

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.place)
        self.place += struct.calcsize(f"<{form}")
        return value

    def string(self) -> str:
        length = self.number("Q")
        self.skip(length)
        return self.data[self.place - length : self.place].decode("utf-8", "replace")

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.place:
            raise ValueError("it ends too early")
        self.place += count

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"there is no type {kind} of values")
        return self.number(_SCALARS[kind])

    def _array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
            return
        for _ in range(count):
            self.value(kind)


def _header(cursor: _Cursor) -> tuple[dict[str, Any], list[tuple[int, int, int]], int]:
    """Keys with their values, (type, numbers, offset) of each tensor, and the byte at which tensors begin."""
    version, num_tensors, num_keys = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not 2 or 3")
    keys = {}
    for _ in range(num_keys):
        key = cursor.string()
        keys[key] = cursor.value(cursor.number("I"))
    tensors = []
    for _ in range(num_tensors):
        cursor.string()
        num_axes = cursor.number("I")
        if num_axes > 8:
            raise ValueError(f"a tensor has {num_axes} axes")
        count = math.prod(cursor.number("Q") for _ in range(num_axes))
        kind, offset = cursor.number("I"), cursor.number("Q")
        if kind not in TENSOR_TYPES:
            raise ValueError(f"there is no type {kind} of tensors")
        tensors.append((kind, count, offset))
    alignment = keys.get("general.alignment", 32) or 32
    return keys, tensors, -(-cursor.place // alignment) * alignment


def _tensor_bytes(kind: int, count: int) -> int:
    _, numbers, size = TENSOR_TYPES[kind]
    return -(-count // numbers) * size
