"""Which files a name means: kinds of files, the data in a folder, splits by file name."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from groupsae.errors import TextError
from groupsae.text.notes import ReadingNotes, counted

PLAIN = (".txt", ".md", ".py")
"""Kinds of files that are one document each."""
RECORDS = (".jsonl", ".json")
"""Kinds of files that hold a document in each object."""
TABLES = (".parquet", ".arrow")
"""Kinds of files that hold a document in each row of a column."""
COMPRESSED = (".gz", ".zst")
"""Suffixes that may follow those of `PLAIN` and `RECORDS`."""
READABLE = (
    "Readable are files and folders of .txt .md .py .jsonl .json (also with .gz or .zst), .parquet and .arrow, "
    "'-', 'hf:NAME' and 'demo'."
)
CARDS = ("readme", "license", "licence", "notice", "citation", "changelog", "contributing", "requirements")
"""Names, without suffix, of files that describe a folder."""
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What the library datasets writes beside its data."""
OTHER_DATA = (
    *(".csv", ".tsv", ".xls", ".xlsx", ".ods", ".orc", ".avro", ".feather", ".lance", ".tfrecord", ".h5", ".hdf5"),
    *(".npy", ".npz", ".pkl", ".pickle", ".bin", ".idx", ".mds", ".msgpack", ".db", ".sqlite", ".sqlite3", ".sql"),
    *(".xml", ".html", ".warc", ".pdf", ".epub", ".doc", ".docx", ".rtf", ".gz", ".zst", ".zip", ".tar", ".tgz"),
    *(".bz2", ".xz", ".lz4", ".lzma", ".7z", ".rar", ".tokens", ".dat", ".data"),
)
"""Kinds of files that may hold text, and that nothing here reads."""
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".bmp", ".ico")
SPLITS = {
    "train": "train training",
    "validation": "validation valid val dev",
    "test": "test testing eval evaluation",
}
SPLIT_OF_WORD = {word: split for split, words in SPLITS.items() for word in words.split()}
SPLIT = re.compile(rf"(?:^|[-_./ \d])({'|'.join(SPLIT_OF_WORD)})(?=$|[-_./ \d])")


def kind_of(path: Path) -> str | None:
    """The suffix that says how a file is read, without that of its compression; None if nothing reads it."""
    suffixes = [".jsonl" if suffix.lower() == ".ndjson" else suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        inner = suffixes[-2] if len(suffixes) > 1 else ""
        return inner if inner in (*PLAIN, *RECORDS) else None
    return suffixes[-1] if suffixes and suffixes[-1] in (*PLAIN, *RECORDS, *TABLES) else None


def files_of(name: str, split: str, notes: ReadingNotes) -> list[Path]:
    """The files that a path means, in the order in which they are read.

    A file is read whatever its name says. Of a folder the files of `split` are read ("all": of every
    split); cards and code beside data are passed over. Raises TextError for what cannot be read, and
    for a folder in which only cards or code could be read while its data could not.
    """
    path = Path(name).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
        found = _below(path) if is_folder else [path]
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, no home directory
        raise TextError(f"{name[:200]!r} cannot be read: {error}. {READABLE}") from error
    if not exists:
        raise TextError(f"There is no text at {name!r}. {READABLE}")
    if is_folder:
        return _readable_in(path, found, split, notes)
    if kind_of(path) is None:
        raise TextError(f"{name} is of an unknown kind. {READABLE}")
    return found


def split_of(path: str) -> str | None:
    """The split that a relative path names, as in `data/train-00000.parquet`; None if it names none."""
    words = SPLIT.findall(path.lower())
    return SPLIT_OF_WORD[words[-1]] if words else None


def _below(folder: Path) -> list[Path]:
    """The files below a folder that are not hidden, in order."""
    return sorted(
        file
        for file in folder.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts) and file.is_file()
    )


def _readable_in(folder: Path, found: list[Path], split: str, notes: ReadingNotes) -> list[Path]:
    left_over = _not_in_saved_datasets(found)
    files = [file for file in found if file.name not in DESCRIPTIONS and file not in left_over]
    readable = [file for file in files if kind_of(file)]
    unknown = [file for file in files if not kind_of(file)]
    notes.unknown += Counter(_suffix(file) for file in unknown)
    notes.unknown += Counter(".arrow that state.json does not list" for _ in left_over)
    beside = _beside_data(readable)
    texts = [file for file in readable if file not in beside]
    if not beside:
        _require_data(folder, texts, unknown)
    notes.cards += [str(file.relative_to(folder)) for file in readable if file in beside]
    if not texts:
        passed_over = "".join(f"{sentence[0].upper()}{sentence[1:]}. " for sentence in notes.sentences())
        raise TextError(f"The folder {folder} holds no text. {passed_over}{READABLE}")
    return _of_split(folder, texts, split, notes)


def _not_in_saved_datasets(files: list[Path]) -> set[Path]:
    """Arrow files beside a `state.json` that does not list them: caches of the library datasets."""
    left_over: set[Path] = set()
    for state in (file for file in files if file.name == "state.json"):
        try:
            listed = {entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # some other program's state
        left_over |= {file for file in files if file.parent == state.parent and _is_unlisted(file, listed)}
    return left_over


def _is_unlisted(file: Path, listed: set[str]) -> bool:
    return file.suffix.lower() == ".arrow" and file.name not in listed


def _beside_data(files: list[Path]) -> set[Path]:
    """The cards and code among files that lie beside data. A .json may be data or not: only cards go then."""
    kinds = {kind_of(file) for file in files}
    if not kinds & {*RECORDS, *TABLES}:
        return set()
    certain = bool(kinds & {".jsonl", *TABLES})
    return {file for file in files if kind_of(file) in PLAIN and (_is_card(file) or (certain and _is_code(file)))}


def _is_card(file: Path) -> bool:
    return file.name.split(".")[0].lower() in CARDS


def _is_code(file: Path) -> bool:
    return kind_of(file) in (".md", ".py")


def _require_data(folder: Path, texts: list[Path], unknown: list[Path]) -> None:
    """Raises TextError where a card or code would become the corpus, as its data cannot be read."""
    not_data = [file for file in texts if _is_card(file) or _is_code(file)]
    only_cards = all(_is_card(file) for file in texts)
    data = [
        file
        for file in unknown
        if _suffix(file) in OTHER_DATA or (only_cards and file.suffix and _suffix(file) not in PICTURES)
    ]
    if not_data and data:
        kinds = ", ".join(sorted({_suffix(file) for file in data}))
        raise TextError(
            f"The folder {folder} holds data of a kind that is not read ({counted(len(data), 'file')}: {kinds}), and "
            f"beside it {not_data[0].relative_to(folder)}, which may only describe the data. {READABLE} "
            f"Convert the data, try text.source 'hf:{folder}', or name the files that you want read."
        )


def _of_split(folder: Path, files: list[Path], split: str, notes: ReadingNotes) -> list[Path]:
    wanted = {_canonical(name) for name in split.split("+")}
    if "all" in wanted:
        return files
    named = {file: _split_in(folder, file, wanted) for file in files}
    chosen = [file for file, name in named.items() if name in wanted or (name is None and "train" in wanted)]
    others = Counter(name or "no split" for file, name in named.items() if file not in set(chosen))
    if not chosen:
        held = ", ".join(f"{name} ({counted(count, 'file')})" for name, count in sorted(others.items()))
        raise TextError(
            f"The folder {folder} holds no files of the split {split!r} (text.split); it holds: {held}. "
            "Set text.split to one of these, or to 'all', or name the files."
        )
    notes.other_splits += others
    return chosen


def _canonical(name: str) -> str:
    if "[" in name:
        raise TextError(
            f"text.split = {name!r} asks for a part of a split, which is possible with 'hf:NAME' only. "
            "Of folders, name a split ('train', 'validation', 'test', 'all')."
        )
    return SPLIT_OF_WORD.get(name.strip().lower(), name.strip())


def _split_in(folder: Path, file: Path, wanted: set[str]) -> str | None:
    """The split of a file in a folder. Code and Markdown have none: `test.py` is a program."""
    if _is_code(file):
        return None
    path = file.relative_to(folder).as_posix()
    own = [name for name in wanted if re.search(rf"(?:^|[-_./]){re.escape(name)}(?=$|[-_./\d])", path)]
    return own[0] if own else split_of(path)


def _suffix(file: Path) -> str:
    return file.suffix.lower() or "no suffix"
