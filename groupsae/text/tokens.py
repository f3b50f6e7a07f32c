"""Text into rows of token ids, with some documents held out.

Documents are joined with the end-of-text token between them and cut into rows of equal length, or
each has a row to itself; a tokenizer that begins every text with a token of its own gets it at the
start of every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from groupsae.errors import RunError, TextError
from groupsae.text.document import Document
from groupsae.text.documents import documents
from groupsae.text.notes import ReadingNotes
from groupsae.text.packing import documents_at, pack, pad, row_clusters
from groupsae.text.tokenizing import begin_token as begin_token
from groupsae.text.tokenizing import end_token, tokenized


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
    """Places of the text, on both sides, that could not be decoded; known where the text was read, not saved."""
    document_starts: np.ndarray | None = field(default=None, repr=False)
    """Where each document begins, as a position in the rows read one after the other; None if it is not known."""
    notes: tuple[str, ...] = ()
    """What was left out or passed over while the text was read, in sentences; not saved."""

    @classmethod
    def from_files(
        cls, source: str | Path | Sequence[str | Path], tokenizer: Any, *, context_length: int = 256, **options: Any
    ) -> TokenRows:
        """Rows of files and folders (.txt .md .py .jsonl .json .parquet .arrow), `-`, `hf:NAME` or `demo`.

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

    def document_of_row(self) -> np.ndarray:
        """For each row the number of its cluster (R,): rows of one document share it.

        Resampling and standard errors should take clusters, not rows, as their units: rows of one document
        are not independent. A row of several short documents is in the cluster of the one that fills most of
        it; where short documents cross from row to row, at least four rows form a cluster, so that two clusters
        share less than half a row of one document. Each row is a cluster of its own where no documents are known.
        """
        if self.document_starts is None:
            return np.arange(len(self), dtype=np.int64)
        return row_clusters(self.document_starts, len(self), self.context_length)

    def documents_in(self, rows: Sequence[int]) -> np.ndarray:
        """The index of the document at each position of the rows asked for (B, T).

        Without known documents it is the row's own index.
        """
        rows_B1 = np.asarray(rows, dtype=np.int64)[:, None]
        if self.document_starts is None:
            return np.repeat(rows_B1, self.context_length, axis=1)
        return documents_at(self.document_starts, rows_B1 * self.context_length + np.arange(self.context_length))

    def __len__(self) -> int:
        return len(self.ids_RT)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.ids_RT[np.asarray(rows, dtype=np.int64)].astype(np.int64))

    def save(self, path: Path) -> None:
        """Write all rows, training and held-out, into one safetensors file."""
        arrays = {
            "train": self.ids_RT,
            "held_out": self.held_out.ids_RT,
            "special": np.array(self.special_ids, dtype=np.int64),
            "documents": np.array([self.num_documents, self.held_out.num_documents], dtype=np.int64),
        }
        starts = {"train_starts": self.document_starts, "held_out_starts": self.held_out.document_starts}
        save_file(arrays | {name: array for name, array in starts.items() if array is not None}, path)

    @classmethod
    def load(cls, path: Path) -> TokenRows:
        """The rows that `save` wrote. Raises RunError if the file is missing or damaged."""
        try:
            arrays = load_file(path)
            special = tuple(arrays["special"].tolist())
            train, held_out = arrays["documents"].tolist()
            _require_rows(arrays["train"], arrays["held_out"])
            held_out_rows = cls(arrays["held_out"], special, held_out, document_starts=_starts(arrays, "held_out"))
            return cls(arrays["train"], special, train, held_out_rows, document_starts=_starts(arrays, "train"))
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
    packing: Literal["documents", "none"] = "documents",
    special_in_text: Literal["split", "keep"] = "split",
    progress: Callable[[int], None] | None = None,
) -> TokenRows:
    """Rows of the documents of `source`, with about `held_out_share` of the documents held out.

    Which documents are held out is decided by a hash of their text, so that a document that
    stands twice is on one side only. If all are on one side, the other is given one of them, or
    the end of the only one. `packing="documents"` puts documents back to back, with the end-of-text
    token between them, and cuts rows out of that; with "none" each document has one row to itself, cut
    to its length or padded. `special_in_text="split"` reads special tokens that a text spells out as
    plain text. `progress` is called with the number of tokens newly read. Raises TextError for text
    that is missing, empty, or does not fill one row on each side.
    """
    source, notes = list(source), ReadingNotes()
    layout = _Layout.of(tokenizer, context_length, packing)
    train, held_out = _Side(max_tokens), _Side(max_held_out_tokens)
    found = documents(source, field=field, split=split, notes=notes)
    for document, ids in tokenized(found, tokenizer, notes, special_in_text):
        side = held_out if _is_held_out(document, held_out_share) else train
        notes.num_replaced += document.num_replaced
        notes.num_without_tokens += not len(ids)
        notes.num_cut += layout.longest is not None and len(ids) > layout.longest
        side.add(ids[: layout.longest], document)
        if progress:
            progress(len(ids))
        if train.full and (held_out.full or held_out.count >= context_length):
            break
    _share_out(train, held_out, held_out_share)
    sides = []
    for side, name in ((train, "training"), (held_out, "held-out")):
        rows, starts = layout.rows(side.within_limit())
        if not len(rows):
            count = sum(map(len, side.pieces))
            raise TextError(
                f"The {name} part of {', '.join(source)} has {count} tokens in {len(side.pieces)} documents, which "
                f"does not fill one row of {context_length}. Give more text, a smaller text.context_length or "
                f"another text.held_out_share (it is {held_out_share:g})."
                + "".join(f" Note: {sentence}." for sentence in notes.sentences())
            )
        sides.append(TokenRows(rows, layout.special_ids, len(side.pieces), document_starts=starts))
    return replace(sides[0], num_replaced=notes.num_replaced, _held_out=sides[1], notes=tuple(notes.sentences()))


@dataclass(frozen=True)
class _Layout:
    """How rows are made of tokenized documents."""

    length: int
    bos: int | None
    end: int | None
    padding: int | None
    special_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, length: int, packing: Literal["documents", "none"]) -> _Layout:
        bos, end = begin_token(tokenizer), end_token(tokenizer)
        padding = None
        if packing == "none":
            padding = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            if padding is None:
                raise TextError(
                    "text.packing = 'none' pads short documents, but the tokenizer has no token for padding and none "
                    "for the end of a text. Set text.packing = 'documents'."
                )
        special = {*tokenizer.all_special_ids, *(() if padding is None else (padding,))}
        return cls(length, bos, end, padding, tuple(sorted(special)))

    @property
    def longest(self) -> int | None:
        """The most tokens of a document that are kept; None: all."""
        return None if self.padding is None else self.length - (self.bos is not None)

    def rows(self, pieces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if self.padding is None:
            return pack(pieces, self.length, self.bos, self.end)
        return pad(pieces, self.length, self.bos, self.end, self.padding)


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
            self.keys.append(document.digest)
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


def _is_held_out(document: Document, share: float) -> bool:
    if document.held_out is not None:
        return document.held_out
    return int.from_bytes(document.digest[:8], "big") < share * 2**64


def _require_rows(*sides: np.ndarray) -> None:
    """Raises ValueError for arrays that are not rows of token ids of one length."""
    if any(ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size for ids in sides):
        raise ValueError(f"expected rows of integers, found {[f'{ids.dtype} {ids.shape}' for ids in sides]}")
    if any(ids.min() < 0 for ids in sides):
        raise ValueError("token ids below 0")
    if len({ids.shape[1] for ids in sides}) > 1:
        raise ValueError("training and held-out rows differ in length")


def _starts(arrays: dict[str, np.ndarray], name: str) -> np.ndarray | None:
    """Where the documents of a side begin. Raises ValueError if they are not positions in its rows, in order."""
    starts = arrays.get(f"{name}_starts")
    if starts is not None:
        in_order = starts.ndim == 1 and starts.dtype.kind in "iu" and len(starts) and (np.diff(starts) > 0).all()
        if not in_order or starts[0] < 0 or starts[-1] >= arrays[name].size:
            raise ValueError(f"{name}_starts are not positions of documents")
    return starts
