"""`distances.json`: how far apart the layers are."""

from __future__ import annotations

from typing import ClassVar

from groupsae.records.types.record import Record


class DistancesRecord(Record):
    """The matrix of distances between hookpoints."""

    path: ClassVar[str] = "distances.json"

    metric: str
    """`angular`, `cka` or `svcca`."""
    hookpoints: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    """(L, L), symmetric, in [0, 1]."""
    standard_error: tuple[tuple[float, ...], ...] | None
    """(L, L), of each entry; None where the metric has none."""
    num_tokens: int
