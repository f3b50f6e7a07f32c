"""Text into packed rows of token ids, with some documents held out.

Documents are joined with the end-of-text token between them and cut into rows of equal length;
a tokenizer that begins every text with a token of its own gets it at the start of every row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from groupsae.errors import RunError, TextError
from groupsae.text.documents import Document, documents

DOCUMENTS_AT_ONCE = 128
CHARACTERS_AT_ONCE = 2**20
"""Longer documents are tokenized in stretches, as a tokenizer needs some hundred bytes for each character."""
LINES, WORDS = re.compile(r".*\S\n(?=\S)", re.DOTALL), re.compile(r".*\S(?= \S)", re.DOTALL)
"""As many whole lines, or words, as there are; no run of white space is cut, so tokens are those of the whole text."""


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids (R, T), and the rows of the held-out documents.

    `rows[[3, 1]]` gives the ids (2, T) of rows 3 and 1 as int64.
    """

    ids_RT: np.ndarray
    special_ids: tuple[int, ...] = ()
    num_documents: int = 0
    _held_out: TokenRows | None = field(default=None, repr=False)
    num_replaced: int = 0
    """Places of the text, on both sides, that were not UTF-8; known where the text was read, not saved."""

    @classmethod
    def from_files(
        cls, source: str | Path | Sequence[str | Path], tokenizer: Any, *, context_length: int = 256, **options: Any
    ) -> TokenRows:
        """Rows of files and folders (.txt .md .py .jsonl .parquet), `-`, `hf:NAME` or `demo`.

        Options are those of `read_rows`.
        """
        names = [source] if isinstance(source, str | Path) else source
        return read_rows(map(str, names), tokenizer, context_length=context_length, **options)

    @property
    def held_out(self) -> TokenRows:
        """The rows of documents that are never trained on. Raises TextError if there are none."""
        if self._held_out is None:
            raise TextError("These rows are themselves held out, or were made without held-out documents.")
        return self._held_out

    @property
    def context_length(self) -> int:
        """Tokens per row."""
        return self.ids_RT.shape[1]

    def keep(self, ids: Tensor) -> Tensor:
        """True where a token is not special; the shape of `ids`."""
        special = torch.tensor(self.special_ids, dtype=ids.dtype, device=ids.device)
        return ~torch.isin(ids, special)

    def __len__(self) -> int:
        return len(self.ids_RT)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.ids_RT[np.asarray(rows, dtype=np.int64)].astype(np.int64))

    def save(self, path: Path) -> None:
        """Write all rows, training and held-out, into one safetensors file."""
        save_file(
            {
                "train": self.ids_RT,
                "held_out": self.held_out.ids_RT,
                "special": np.array(self.special_ids, dtype=np.int64),
                "documents": np.array([self.num_documents, self.held_out.num_documents], dtype=np.int64),
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> TokenRows:
        """The rows that `save` wrote. Raises RunError if the file is missing or damaged."""
        try:
            arrays = load_file(path)
            special = tuple(arrays["special"].tolist())
            train, held_out = arrays["documents"].tolist()
            _require_rows(arrays["train"], arrays["held_out"])
            return cls(arrays["train"], special, train, cls(arrays["held_out"], special, held_out))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{path} is missing or damaged ({error}). Run `groupsae tokens` again.") from error


def read_rows(
    source: Iterable[str],
    tokenizer: Any,
    *,
    context_length: int,
    held_out_share: float = 0.1,
    field: str = "text",
    split: str = "train",
    max_tokens: int = 100_000_000,
    max_held_out_tokens: int = 5_000_000,
    progress: Callable[[int], None] | None = None,
) -> TokenRows:
    """Rows of the documents of `source`, with about `held_out_share` of the documents held out.

    Which documents are held out is decided by a hash of their text, so that a document that
    stands twice is on one side only. If all are on one side, the other is given one of them, or
    the end of the only one. `progress` is called with the number of tokens newly read. Raises
    TextError for text that is missing, empty, or does not fill one row on each side.
    """
    source = list(source)
    train, held_out = _Side(max_tokens), _Side(max_held_out_tokens)
    replaced = 0
    for document, ids in _tokenized(documents(source, field=field, split=split), tokenizer):
        side = held_out if _is_held_out(document, held_out_share) else train
        side.add(ids, document)
        replaced += document.num_replaced
        if progress:
            progress(len(ids))
        if train.full and (held_out.full or held_out.count >= context_length):
            break
    _share_out(train, held_out, held_out_share)
    bos, end = begin_token(tokenizer), _end(tokenizer)
    special = tuple(sorted(set(tokenizer.all_special_ids)))
    sides = []
    for side, name in ((train, "training"), (held_out, "held-out")):
        rows = _pack(side.within_limit(), context_length, bos, end)
        if not len(rows):
            count = sum(map(len, side.pieces))
            raise TextError(
                f"The {name} part of {', '.join(source)} has {count} tokens in {len(side.pieces)} documents, which "
                f"does not fill one row of {context_length}. Give more text, a smaller text.context_length or "
                f"another text.held_out_share (it is {held_out_share:g})."
            )
        sides.append(TokenRows(rows, special, len(side.pieces)))
    return replace(sides[0], num_replaced=replaced, _held_out=sides[1])


class _Side:
    """The tokenized documents of one side of the split, up to the first beyond a limit."""

    def __init__(self, limit: int) -> None:
        self.pieces: list[np.ndarray] = []
        self.keys: list[bytes] = []
        self.limit, self.count = limit, 0

    @property
    def full(self) -> bool:
        return self.count >= self.limit

    def add(self, ids: np.ndarray, document: Document) -> None:
        if len(ids) and not self.full:
            self.pieces.append(ids)
            self.keys.append(_digest(document))
            self.count += len(ids)

    def within_limit(self) -> list[np.ndarray]:
        """The documents, the last one cut so that the limit is kept."""
        starts = np.cumsum([0, *map(len, self.pieces)])
        cut = [piece[: max(0, self.limit - start)] for piece, start in zip(self.pieces, starts, strict=False)]
        return [piece for piece in cut if len(piece)]


def _share_out(train: _Side, held_out: _Side, share: float) -> None:
    """Gives an empty side something of the other: a document and its duplicates, or a part of the only one."""
    full, empty = (train, held_out) if train.pieces else (held_out, train)
    if empty.pieces or not full.pieces:
        return
    if len(set(full.keys)) == 1:
        piece = full.pieces[0]
        cut = round(len(piece) * (1 - share))
        train.pieces, held_out.pieces = [piece[:cut]], [piece[cut:]]
        return
    chosen = min(full.keys)
    pairs = list(zip(full.pieces, full.keys, strict=True))
    empty.pieces = [piece for piece, key in pairs if key == chosen]
    full.pieces = [piece for piece, key in pairs if key != chosen]


def _tokenized(texts: Iterator[Document], tokenizer: Any) -> Iterator[tuple[Document, np.ndarray]]:
    waiting: list[Document] = []

    def encode(stretches: list[str]) -> list[np.ndarray]:
        encoded = tokenizer(stretches, add_special_tokens=False, verbose=False)["input_ids"]
        return [np.asarray(ids, dtype=np.int32) for ids in encoded]

    def flush() -> Iterator[tuple[Document, np.ndarray]]:
        if waiting:
            yield from zip(waiting, encode([document.text for document in waiting]), strict=True)
            waiting.clear()

    for document in texts:
        if len(document.text) > CHARACTERS_AT_ONCE:
            yield from flush()
            yield document, np.concatenate([encode([stretch])[0] for stretch in _stretches(document.text)])
            continue
        waiting.append(document)
        if len(waiting) == DOCUMENTS_AT_ONCE:
            yield from flush()
    yield from flush()


def _stretches(text: str) -> Iterator[str]:
    """The text in stretches that end with a line where they can, else before a space, where tokens end as well."""
    start = 0
    while len(text) - start > CHARACTERS_AT_ONCE:
        most = start + CHARACTERS_AT_ONCE
        found = LINES.match(text, start, most) or WORDS.match(text, start, most)
        end = found.end() if found else most
        yield text[start:end]
        start = end
    yield text[start:]


def _digest(document: Document) -> bytes:
    return hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()


def _is_held_out(document: Document, share: float) -> bool:
    if document.held_out is not None:
        return document.held_out
    return int.from_bytes(_digest(document)[:8], "big") < share * 2**64


def _require_rows(*sides: np.ndarray) -> None:
    """Raises ValueError for arrays that are not rows of token ids of one length."""
    if any(ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size for ids in sides):
        raise ValueError(f"expected rows of integers, found {[f'{ids.dtype} {ids.shape}' for ids in sides]}")
    if any(ids.min() < 0 for ids in sides):
        raise ValueError("token ids below 0")
    if len({ids.shape[1] for ids in sides}) > 1:
        raise ValueError("training and held-out rows differ in length")


def _pack(pieces: list[np.ndarray], length: int, bos: int | None, end: int | None) -> np.ndarray:
    separator = np.array([] if end is None else [end], dtype=np.int32)
    joined = [part for piece in pieces for part in (piece, separator)]
    line = np.concatenate(joined) if joined else np.zeros(0, dtype=np.int32)
    width = length - (bos is not None)
    rows = line[: len(line) // width * width].reshape(-1, width)
    if bos is not None:
        rows = np.concatenate([np.full((len(rows), 1), bos), rows], axis=1)
    return rows.astype(np.uint16 if rows.max(initial=0) < 2**16 else np.int32)


def begin_token(tokenizer: Any) -> int | None:
    """The token that a tokenizer puts before every text; None for one that does not."""
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    return bos if bos is not None and len(ids) and ids[0] == bos else None


def _end(tokenizer: Any) -> int | None:
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
