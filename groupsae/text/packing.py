"""Documents into rows of equal length, and which rows belong together.

Shapes: R rows, T tokens, D documents.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

ROWS_OF_A_CLUSTER = 4
"""A chain of documents that cross from row to row is cut into clusters of at least this many rows."""


def pack(pieces: list[np.ndarray], length: int, bos: int | None, end: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Documents back to back with `end` after each, cut into rows that begin with `bos`; what is left is dropped.

    Returns the rows (R, T), and where in them, read row by row, each document begins (D).
    """
    separator = np.array([] if end is None else [end], dtype=np.int32)
    joined = [part for piece in pieces for part in (piece, separator)]
    line = np.concatenate(joined) if joined else np.zeros(0, dtype=np.int32)
    first = np.cumsum([0, *(len(piece) + len(separator) for piece in pieces)], dtype=np.int64)[:-1]
    begun = bos is not None
    width = length - begun
    rows = line[: len(line) // width * width].reshape(-1, width)
    first = first[first < rows.size]
    column = first % width
    starts_D = first // width * length + np.where(column, column + begun, 0)
    return _with_begin(rows, bos), starts_D


def pad(
    pieces: list[np.ndarray], length: int, bos: int | None, end: int | None, padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """One document to a row: `bos`, the document up to the row's length, `end` if it fits, `padding`.

    Returns the rows (R, T), and where in them each document begins (D = R).
    """
    width = length - (bos is not None)
    rows = np.full((len(pieces), width), padding, dtype=np.int32)
    for row, piece in zip(rows, pieces, strict=True):
        ended = piece if end is None else np.append(piece, end)
        row[: min(width, len(ended))] = ended[:width]
    return _with_begin(rows, bos), np.arange(len(pieces), dtype=np.int64) * length


def _with_begin(rows: np.ndarray, bos: int | None) -> np.ndarray:
    if bos is not None:
        rows = np.concatenate([np.full((len(rows), 1), bos), rows], axis=1)
    return rows.astype(np.uint16 if rows.max(initial=0) < 2**16 else np.int32)


def documents_at(starts_D: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The index of the document at each position of rows that are read one after the other."""
    return np.maximum(np.searchsorted(starts_D, positions, side="right") - 1, 0)


def row_clusters(starts_D: np.ndarray, num_rows: int, length: int) -> np.ndarray:
    """For each row the number of its cluster (R), such that clusters are nearly independent of each other.

    Rows with the same main document, which is the one with the most tokens in a row, are in one cluster.
    Where documents are short, nearly every one of them crosses from a row into the next, and all rows
    would hang together in one chain. So a chain is cut where the main document changes, once its cluster
    has `ROWS_OF_A_CLUSTER` rows. Two clusters then share less than half a row of one document.
    """
    main_R = _main_documents(starts_D, num_rows, length)
    is_start = np.isin(np.arange(num_rows) * length, starts_D)
    run_starts = [0, *(np.flatnonzero(np.diff(main_R)) + 1).tolist(), num_rows]
    clusters_R = np.zeros(num_rows, dtype=np.int64)
    cluster, size = 0, 0
    for begin, stop in pairwise(run_starts):
        crosses = not is_start[begin] if begin < num_rows else False
        if size and not (crosses and size < ROWS_OF_A_CLUSTER):
            cluster, size = cluster + 1, 0
        clusters_R[begin:stop] = cluster
        size += stop - begin
    return clusters_R


def _main_documents(starts_D: np.ndarray, num_rows: int, length: int) -> np.ndarray:
    """For each row the document that has the most tokens in it; of equal ones the last."""
    cuts = np.union1d(starts_D, np.arange(num_rows, dtype=np.int64) * length)
    sizes = np.diff(cuts, append=num_rows * length)
    row_of_cut = cuts // length
    order = np.lexsort((cuts, sizes, row_of_cut))
    last_of_row = np.flatnonzero(np.diff(row_of_cut[order], append=num_rows))
    return documents_at(starts_D, cuts[order[last_of_row]])
