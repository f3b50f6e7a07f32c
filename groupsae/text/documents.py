"""Where text comes from: files, folders, standard input, Hugging Face datasets, the demo's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupsae.errors import ConfigError, TextError
from groupsae.text.demo.text import is_held_out, standard_library_files, standard_library_path

SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Document:
    """One text, and which side of the split it is on, if that is fixed already."""

    text: str
    held_out: bool | None = None
    num_replaced: int = 0
    """Places where bytes that are not UTF-8 became U+FFFD."""

    @classmethod
    def from_bytes(cls, content: bytes, held_out: bool | None = None) -> Document:
        """The document in a file's bytes, a byte order mark left out."""
        text, num_replaced = _decode(content)
        return cls(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), held_out, num_replaced)


def _decode(content: bytes) -> tuple[str, int]:
    """The text, and how many U+FFFD in it were not there before."""
    text = content.decode("utf-8", "replace")
    return text, text.count("\ufffd") - content.count("\ufffd".encode())


def documents(source: Iterable[str], *, field: str = "text", split: str = "train") -> Iterator[Document]:
    """The documents of files and folders, `-`, `hf:NAME` or `demo`, in a fixed order.

    A .txt, .md or .py file is one document, a line of .jsonl or a row of .parquet as well; bytes
    that are not UTF-8 are read as U+FFFD. `hf:NAME:SUBSET` picks a subset of a dataset. Raises
    TextError for a source that is missing,
    unreadable or of an unknown kind, before any text is read.
    """
    source = list(source)
    files = {name: _files(name) for name in source if not _is_special(name)}
    for name in source:
        if name == "demo":
            yield from _standard_library()
        elif name == "-":
            yield Document.from_bytes(sys.stdin.buffer.read())
        elif name.startswith("hf:"):
            yield from _dataset(name[3:], field, split)
        else:
            for path in files[name]:
                yield from _read(path, field)


def source_files(source: Iterable[str]) -> list[Path]:
    """The files that a source names, in the order in which they are read; none for `-`, `hf:` and `demo`."""
    return [file for name in source if not _is_special(name) for file in _files(name)]


def _is_special(name: str) -> bool:
    return name in ("demo", "-") or name.startswith("hf:")


def _files(name: str) -> list[Path]:
    allowed = f"Readable are {' '.join(SUFFIXES)} files and folders of them, '-', 'hf:NAME' and 'demo'."
    try:
        path = Path(name).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
        found = sorted(file for file in path.rglob("*") if _is_text(file)) if is_folder else [path]
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, no home directory
        raise TextError(f"{name[:200]!r} cannot be read: {error}. {allowed}") from error
    if not exists:
        raise TextError(f"There is no text at {name!r}. {allowed}")
    if not found:
        raise TextError(f"The folder {name} holds no text. {allowed}")
    if not is_folder and path.suffix.lower() not in SUFFIXES:
        raise TextError(f"{name} is of an unknown kind. {allowed}")
    return found


def _is_text(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()


def _read(path: Path, field: str) -> Iterator[Document]:
    try:
        if path.suffix.lower() == ".jsonl":
            yield from _json_lines(path, field)
        elif path.suffix.lower() == ".parquet":
            yield from _parquet(path, field)
        else:
            yield Document.from_bytes(path.read_bytes())
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror or error}.") from error


def _json_lines(path: Path, field: str) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            line, num_replaced = _decode(content)
            if line.strip("\ufeff \t\r\n"):
                try:
                    value = json.loads(line.removeprefix("\ufeff"))
                except (ValueError, RecursionError) as error:
                    raise TextError(f"{path}, line {number} is not JSON: {error}.") from error
                yield Document(_field(value, field, f"{path}, line {number}"), num_replaced=num_replaced)


def _field(value: Any, field: str, where: str) -> str:
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        keys = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise TextError(f"{where} has no text under {field!r} (it has: {keys}). Set text.field.")
    return value[field].encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON may hold "\ud800"


def _parquet(path: Path, field: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise TextError(
                    f"{path} has no column {field!r}, only {', '.join(file.schema_arrow.names)}. Set text.field."
                )
            kind = file.schema_arrow.field(field).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise TextError(f"Column {field!r} of {path} holds {kind}, not text. Set text.field.")
            for batch in file.iter_batches(columns=[field]):
                yield from (Document(text) for text in batch[0].to_pylist() if text)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as parquet: {error}.") from error


def _dataset(name: str, field: str, split: str) -> Iterator[Document]:
    try:
        import datasets
    except ImportError:
        raise ConfigError("text.source 'hf:...' needs the extra `hub`: pip install 'groupsae[hub]'.") from None
    repository, _, subset = name.partition(":")
    try:
        stream = datasets.load_dataset(repository, subset or None, split=split, streaming=True)
        for number, value in enumerate(stream):
            yield Document(_field(value, field, f"{name}, document {number}"))
    except TextError:
        raise
    except Exception as error:  # datasets has many, and some of the network libraries below it
        raise TextError(f"Dataset {name!r} cannot be read: {error}") from error


def _standard_library() -> Iterator[Document]:
    root = standard_library_path()
    for path in standard_library_files():
        yield Document.from_bytes(path.read_bytes(), held_out=is_held_out(path.relative_to(root)))
