"""The files of an activation cache: a manifest, and shards of rows in the safetensors format.

docs/activation-cache.md describes them for other programs. This module reads and checks them, and
knows their sizes; it needs neither torch nor a language model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from groupsae.errors import RunError
from groupsae.storage import describe, within

FORMAT, VERSION = "groupsae-activations", 1
MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
"""The manifest of a whole cache, and its name while shards are still missing."""

Dtype = Literal["bfloat16", "float16", "float32", "int8"]
Split = Literal["train", "held_out"]
BYTES: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}
"""Bytes of one number, by dtype."""
SCALE_BYTES, POSITION_BYTES = 4, 4 + 1 + 1
"""Bytes per layer and position of int8's scales, and per position of the token and the two masks."""

_HEADER_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "int8": "I8"}
_HEADER_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I8": 1, "I32": 4, "I64": 8, "BOOL": 1}
_HEADER_AT_MOST, _LARGEST_HEADER = 1024, 2**20
"""Bytes of a header as groupsae writes it, and as it is still read."""

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


class Shard(BaseModel):
    """One file of consecutive rows of the training or the held-out side."""

    model_config = ConfigDict(frozen=True)
    file: Name
    split: Split
    rows: Count
    bytes: Count
    sha256: str


class CacheManifest(BaseModel):
    """All that a cache says of itself. `facts` are free: what the activations were computed from."""

    model_config = ConfigDict(frozen=True)
    format: str = FORMAT
    version: int = VERSION
    facts: dict[str, Any]
    hookpoints: Annotated[tuple[Name, ...], Field(min_length=1)]
    d_model: Count
    dtype: Dtype
    row_tokens: Count
    rows: dict[Split, Annotated[int, Field(ge=0)]]
    seed: int | None = None
    """What drew the rows, where not all are kept."""
    skip_special: bool = True
    on_nan: Literal["stop", "mask"] = "stop"
    finite: bool = False
    """Whether the writer has seen to it that every number is finite; otherwise reads look."""
    shards: tuple[Shard, ...] = ()

    @property
    def rows_in_shards(self) -> dict[Split, int]:
        """Rows of each side in all shards."""
        return {split: sum(s.rows for s in self.shards if s.split == split) for split in get_args(Split)}

    def tensors(self, rows: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The tensors of a shard with so many rows: dtype as the safetensors header spells it, and shape."""
        layers, positions = len(self.hookpoints), (rows, self.row_tokens)
        form = {
            "activations": (_HEADER_NAMES[self.dtype], (layers, *positions, self.d_model)),
            "tokens": ("I32", positions),
            "special": ("BOOL", positions),
            "left_out": ("BOOL", positions),
            "rows": ("I64", (rows,)),
            "documents": ("I64", (rows,)),
        }
        if self.dtype == "int8":
            form["scales"] = ("F32", (layers, *positions))
        return form

    def data_bytes(self, rows: int) -> int:
        """Bytes of the tensors of so many rows."""
        return sum(_HEADER_BYTES[name] * math.prod(shape) for name, shape in self.tensors(rows).values())

    def shard_bytes(self, rows: int) -> int:
        """Bytes of a shard with so many rows, at most."""
        return _HEADER_AT_MOST + self.data_bytes(rows)

    def differences(self, other: CacheManifest) -> list[str]:
        """In what two caches differ, their shards aside; a sentence each."""
        mine, theirs = (one.model_dump(exclude={"shards", "facts"}) for one in (self, other))
        facts = compare(self.facts, other.facts)
        unknown = [f"{name}: not asked, found {_short(other.facts[name])}" for name in other.facts.keys() - self.facts]
        return compare(mine, theirs) + facts + sorted(unknown)


@dataclass(frozen=True)
class Place:
    """A tensor in a file: the byte it begins at, its shape, and the bytes of one number."""

    start: int
    shape: tuple[int, ...]
    item_bytes: int


def compare(asked: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is not found as it was asked for, a sentence each; what was not asked for does not count."""
    plain_asked, plain_found = (json.loads(json.dumps(dict(value))) for value in (asked, found))
    return [
        f"{name}: asked {_short(value)}, found {_short(plain_found[name]) if name in plain_found else 'nothing'}"
        for name, value in plain_asked.items()
        if name not in plain_found or plain_found[name] != value
    ]


def read_manifest(path: Path) -> CacheManifest:
    """The manifest in this file. Raises RunError if it is missing, damaged, foreign or of a newer version."""
    remedy = "Give the folder of an activation cache, or harvest again into an empty folder."
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (path.parent / UNFINISHED).exists():
            raise RunError(
                f"{path.parent} holds an activation cache that is not finished. Harvest again into the same folder: "
                "it goes on after the last whole shard."
            ) from None
        raise RunError(f"{path.parent} holds no activation cache: there is no {path.name}. {remedy}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read or is damaged: {error}. {remedy}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise RunError(f"{path} is no activation cache: its format is {found!r} where {FORMAT!r} is needed. {remedy}")
    if value.get("version") != VERSION:
        raise RunError(
            f"{path} has format version {value.get('version')!r}; this groupsae reads version {VERSION}. "
            "Update groupsae, or harvest again with this one."
        )
    try:
        manifest = CacheManifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"{path} is damaged: {where}: {first['msg']}. {remedy}") from error
    found = {split: manifest.rows_in_shards[split] for split in manifest.rows}
    if path.name == MANIFEST and found != manifest.rows:
        raise RunError(f"{path} is damaged: it has {manifest.rows} rows, its shards {found}. {remedy}")
    return manifest


def shard_tensors(folder: Path, manifest: CacheManifest, shard: Shard, *, verify: bool = False) -> dict[str, Place]:
    """Where each tensor of a shard lies in its file.

    Raises RunError for a file that is missing, truncated or of another form than the manifest says and, with
    `verify`, for another SHA-256.
    """
    path = within(folder, shard.file)
    try:
        fault = shard_fault(path, shard, verify=verify)
        header, begin = ({}, 0) if fault else _read_header(path)
    except (OSError, ValueError, RecursionError) as error:
        fault, header, begin = f"cannot be read or is damaged ({error})", {}, 0
    if fault:
        raise RunError(f"{path} {fault}. Harvest again into an empty folder, or copy the cache again.")
    places = {}
    for name, (dtype, shape) in manifest.tensors(shard.rows).items():
        places[name] = _place(header.get(name), dtype, shape, begin, shard.bytes)
        if places[name] is None:
            raise RunError(
                f"{path} is damaged: its {name} must be {dtype} {list(shape)} within the file, and the header says "
                f"{_short(header.get(name))}. Harvest again into an empty folder."
            )
    return places


def shard_fault(path: Path, shard: Shard, *, verify: bool) -> str | None:
    """What is wrong with the file of a shard, as the end of a sentence; None if nothing is."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"is {'truncated' if size < shard.bytes else 'damaged'}: {size} bytes where {shard.bytes} were written"
    if verify and describe(path)["sha256"] != shard.sha256:
        return "is damaged: its SHA-256 is not the one in the manifest"
    return None


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError("no header of the safetensors format")
        header = json.loads(file.read(size))
    if not isinstance(header, dict):
        raise ValueError("no header of the safetensors format")
    return header, 8 + size


def _place(entry: Any, dtype: str, shape: tuple[int, ...], begin: int, file_bytes: int) -> Place | None:
    """Where a tensor lies, if its entry in the header is of this form and lies within the file."""
    if not isinstance(entry, dict) or (entry.get("dtype"), entry.get("shape")) != (dtype, list(shape)):
        return None
    offsets = entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(offset) is not int for offset in offsets):
        return None
    start, end = offsets
    size = _HEADER_BYTES[dtype] * math.prod(shape)
    if start < 0 or end - start != size or begin + end > file_bytes:
        return None
    return Place(begin + start, shape, _HEADER_BYTES[dtype])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
