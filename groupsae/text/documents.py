"""Where text comes from: files, folders, standard input, Hugging Face datasets, the demo's own."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from groupsae.errors import ConfigError, TextError
from groupsae.text.demo.text import is_held_out, standard_library_files, standard_library_path
from groupsae.text.document import Document as Document
from groupsae.text.files import files_of
from groupsae.text.notes import ReadingNotes
from groupsae.text.readers import NoRecords, documents_of_file
from groupsae.text.records import document_in


def documents(
    source: Iterable[str], *, field: str = "text", split: str = "train", notes: ReadingNotes | None = None
) -> Iterator[Document]:
    """The documents of files and folders, `-`, `hf:NAME` or `demo`, in a fixed order.

    A .txt, .md or .py file is one document; so is an object of .jsonl or .json, or a row of .parquet or
    .arrow. Text and JSON may be compressed (.gz, .zst). `field` may be nested (`meta.text`) and holds a
    text, chat messages or token ids; null and empty ones are left out. Encodings are UTF-8, or UTF-16 and
    UTF-32 with a byte order mark; other bytes are read as U+FFFD. `hf:NAME:SUBSET` picks a subset of a
    dataset. Of a dataset and of a folder whose files name splits, `split` is read. What was left out or
    passed over is counted in `notes`. Raises TextError for a source that is missing, unreadable or of
    an unknown kind, before any text is read.
    """
    source, notes = list(source), notes if notes is not None else ReadingNotes()
    files = {name: files_of(name, split, notes) for name in dict.fromkeys(source) if not _is_special(name)}
    for name in source:
        if name == "demo":
            yield from _standard_library()
        elif name == "-":
            document = Document.from_bytes(sys.stdin.buffer.read())
            if document.text:
                yield document
            else:
                notes.num_empty += 1
        elif name.startswith("hf:"):
            yield from _dataset(name[3:], field, split, notes)
        else:
            yield from _documents_of(name, files[name], field, notes)


def source_files(source: Iterable[str], split: str = "all") -> list[Path]:
    """The files that a source names, in the order in which they are read; none for `-`, `hf:` and `demo`."""
    notes = ReadingNotes()
    return [file for name in source if not _is_special(name) for file in files_of(name, split, notes)]


def _is_special(name: str) -> bool:
    return name in ("demo", "-") or name.startswith("hf:")


def _documents_of(name: str, files: list[Path], field: str, notes: ReadingNotes) -> Iterator[Document]:
    """The documents of a source's files. A .json of a folder that holds no records is passed over."""
    for path in files:
        try:
            yield from documents_of_file(path, field, notes)
        except NoRecords:
            if path == Path(name).expanduser():
                raise
            notes.unknown[".json without records"] += 1


def _dataset(name: str, field: str, split: str, notes: ReadingNotes) -> Iterator[Document]:
    try:
        import datasets
    except ImportError:
        raise ConfigError("text.source 'hf:...' needs the extra `hub`: pip install 'groupsae[hub]'.") from None
    repository, _, subset = name.partition(":")
    try:
        stream = datasets.load_dataset(repository, subset or None, split=split, streaming=True)
        for number, row in enumerate(stream):
            document = document_in(row, field, f"{name}, document {number}", notes)
            if document is not None:
                yield document
    except TextError:
        raise
    except Exception as error:  # datasets has many, and some of the network libraries below it
        raise TextError(f"Dataset {name!r} cannot be read: {error}") from error


def _standard_library() -> Iterator[Document]:
    root = standard_library_path()
    for path in standard_library_files():
        document = Document.from_bytes(path.read_bytes(), held_out=is_held_out(path.relative_to(root)))
        if document.text:  # an empty __init__.py says nothing
            yield document
