"""The documents of one file: plain text, JSON, Parquet and Arrow, compressed or not."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from groupsae.errors import TextError
from groupsae.text.document import Document, decode, encoding_of
from groupsae.text.files import RECORDS, TABLES, kind_of
from groupsae.text.notes import ReadingNotes
from groupsae.text.records import MISSING, document_in, look_up


class NoRecords(TextError):
    """A JSON file that holds no list of objects: a description, a configuration, a vocabulary."""


def documents_of_file(path: Path, field: str, notes: ReadingNotes) -> Iterator[Document]:
    """The documents of a file, those without text counted in `notes`. Raises TextError if it cannot be read."""
    kind = kind_of(path)
    try:
        if kind in RECORDS:
            yield from _json_documents(path, kind, field, notes)
        elif kind in TABLES:
            yield from _table_documents(path, kind, field, notes)
        else:
            with _opened(path) as file:
                document = Document.from_bytes(file.read())
            if document.text:
                yield document
            else:
                notes.num_empty += 1
    except (OSError, EOFError, zlib.error) as error:  # the last two: a compressed file that is cut off or damaged
        raise TextError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _opened(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))  # type: ignore[arg-type]
    return path.open("rb")


# ---- JSON


def _json_documents(path: Path, kind: str, field: str, notes: ReadingNotes) -> Iterator[Document]:
    with _opened(path) as file:
        rows = _objects(path, file) if kind == ".jsonl" else _objects_of_json(path, file.read(), field)
        for where, row, num_replaced in rows:
            document = document_in(row, field, where, notes)
            if document is not None:
                yield Document(document.text, None, num_replaced, document.ids, document.messages)


def _objects(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any, int]]:
    """The values of a file with one on each line: where each is, what it is, places replaced in it."""
    for number, (line, num_replaced) in enumerate(_lines(file), start=1):
        if line.strip("\ufeff \t\r\n"):
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line.removeprefix("\ufeff")), num_replaced
            except (ValueError, RecursionError) as error:
                raise TextError(f"{where} is not JSON: {error}.") from error


def _lines(file: BinaryIO) -> Iterator[tuple[str, int]]:
    encoding = encoding_of(file.peek(4)[:4])  # type: ignore[attr-defined]
    if encoding == "utf-8":
        yield from map(decode, file)
    else:
        for line in io.TextIOWrapper(file, encoding, errors="replace", newline="\n"):
            yield line, line.count("\ufffd")


def _objects_of_json(path: Path, content: bytes, field: str) -> Iterable[tuple[str, Any, int]]:
    """The objects of a .json file: an array of them, a single one, or one on each line."""
    text, num_replaced = decode(content)
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        first = next(filter(str.strip, text.removeprefix("\ufeff").splitlines()), "")
        if not _is_json(first):
            raise TextError(f"{path} is not JSON: {error}.") from error
        return _objects(path, io.BufferedReader(io.BytesIO(text.encode("utf-8", "surrogatepass"))))  # type: ignore[arg-type]
    if isinstance(value, dict) and look_up(value, field) is not MISSING:
        return [(str(path), value, num_replaced)]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        found = f"an object with {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else "other values"
        raise NoRecords(
            f"{path} holds {found}. It should hold an array of objects, or an object on each line, with a text "
            f"under {field!r}. Set text.field."
        )
    return [(f"{path}, element {n}", row, num_replaced if n == 0 else 0) for n, row in enumerate(value)]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


# ---- tables


def _table_documents(path: Path, kind: str, field: str, notes: ReadingNotes) -> Iterator[Document]:
    import pyarrow

    try:
        number = 0
        for name, values in _parquet_columns(path, field) if kind == ".parquet" else _arrow_columns(path, field):
            for value in values:
                document = document_in({name: value}, field, f"{path}, row {number}", notes)
                number += 1
                if document is not None:
                    yield document
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as {kind.removeprefix('.')}: {error}.") from error


def _parquet_columns(path: Path, field: str) -> Iterator[tuple[str, list[Any]]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        name = _column(path, field, file.schema_arrow.names)
        for batch in file.iter_batches(columns=[name]):
            yield name, batch[0].to_pylist()


def _arrow_columns(path: Path, field: str) -> Iterator[tuple[str, list[Any]]]:
    """The column of a file in Arrow's format for files or, as the library datasets writes it, for streams."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
        name = _column(path, field, reader.schema.names)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            yield name, batch.column(name).to_pylist()


def _column(path: Path, field: str, names: list[str]) -> str:
    """The column that holds a field, which may be nested in it."""
    name = field if field in names else field.split(".")[0]
    if name not in names:
        raise TextError(f"{path} has no column {name!r}, only {', '.join(names)}. Set text.field.")
    return name
