"""The distances between layers: an (L, L) matrix that is known to be one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from groupsae.errors import PartitionError

_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Distances:
    """How far apart the layers are: `matrix[p, q]` between `hookpoints[p]` and `hookpoints[q]`.

    `matrix` is (L, L) float64, symmetric, non-negative, zero on the diagonal; asymmetry and
    diagonals up to 1e-6 are rounding and are removed. `standard_error` has the same shape, or is
    None where the metric has none. `num_tokens` were measured. Raises PartitionError for anything else.
    """

    hookpoints: tuple[str, ...]
    matrix: np.ndarray
    metric: str
    num_tokens: int
    standard_error: np.ndarray | None = None

    def __post_init__(self) -> None:
        hookpoints = tuple(self.hookpoints)
        if not hookpoints or len(set(hookpoints)) < len(hookpoints):
            raise PartitionError(f"Distances need one or more different hookpoints, given {list(hookpoints)}.")
        matrix = _square(self.matrix, hookpoints, "distance matrix")
        _require_symmetric(matrix, hookpoints, "distance matrix")
        _require_zero_diagonal(matrix, hookpoints)
        matrix = (matrix + matrix.T) / 2
        np.fill_diagonal(matrix, 0.0)
        errors = self.standard_error
        if errors is not None:
            errors = _square(errors, hookpoints, "matrix of standard errors")
            _require_symmetric(errors, hookpoints, "matrix of standard errors")
            errors.setflags(write=False)
        matrix.setflags(write=False)
        object.__setattr__(self, "hookpoints", hookpoints)
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "standard_error", errors)

    def __len__(self) -> int:
        return len(self.hookpoints)

    def between(self, group: Iterable[str]) -> np.ndarray:
        """The distances (|g|, |g|) between the hookpoints of a group. Raises PartitionError for an unknown one."""
        group = tuple(group)
        position = {name: index for index, name in enumerate(self.hookpoints)}
        unknown = [name for name in group if name not in position]
        if unknown:
            known = ", ".join(self.hookpoints)
            raise PartitionError(f"No distance was measured to {', '.join(unknown)}; the matrix has {known}.")
        chosen = [position[name] for name in group]
        return self.matrix[np.ix_(chosen, chosen)]

    def to_json(self) -> dict[str, Any]:
        """Plain lists under `metric`, `hookpoints`, `matrix`, `standard_error`, `num_tokens`."""
        return {
            "metric": self.metric,
            "hookpoints": list(self.hookpoints),
            "matrix": self.matrix.tolist(),
            "standard_error": None if self.standard_error is None else self.standard_error.tolist(),
            "num_tokens": self.num_tokens,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Distances:
        """What `to_json` gave. Raises PartitionError for a missing key or a matrix that is none."""
        missing = [key for key in ("metric", "hookpoints", "matrix", "num_tokens") if key not in values]
        if missing:
            raise PartitionError(
                f"The distances lack {', '.join(missing)}; found {', '.join(values) or 'nothing'}. Measure them again."
            )
        return cls(
            hookpoints=tuple(values["hookpoints"]),
            matrix=values["matrix"],
            metric=values["metric"],
            num_tokens=int(values["num_tokens"]),
            standard_error=values.get("standard_error"),
        )


def _square(values: Any, hookpoints: tuple[str, ...], what: str) -> np.ndarray:
    """The values as a new float64 matrix, if it is square, of the right size, finite and not negative."""
    try:
        matrix = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise PartitionError(f"The {what} must hold numbers in rows of equal length; it does not.") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise PartitionError(f"The {what} has shape {matrix.shape}; it must be square, one row per hookpoint.")
    if len(matrix) != len(hookpoints):
        raise PartitionError(
            f"The {what} is for {len(matrix)} hookpoints but {len(hookpoints)} are named; give one name per row."
        )
    for fault, mask in (("not finite", ~np.isfinite(matrix)), ("negative", matrix < 0)):
        if mask.any():
            raise PartitionError(f"{_entry(matrix, mask, hookpoints, what)}, which is {fault}. Measure it again.")
    return matrix


def _require_symmetric(matrix: np.ndarray, hookpoints: tuple[str, ...], what: str) -> None:
    apart = np.abs(matrix - matrix.T) > _TOLERANCE
    if apart.any():
        p, q = np.argwhere(apart)[0]
        raise PartitionError(
            f"{_entry(matrix, apart, hookpoints, what)} one way and {matrix[q, p]:g} the other; it must be symmetric "
            f"to {_TOLERANCE:g}. Fill both triangles."
        )


def _require_zero_diagonal(matrix: np.ndarray, hookpoints: tuple[str, ...]) -> None:
    apart = np.diag(np.diag(matrix)) > _TOLERANCE
    if apart.any():
        raise PartitionError(
            f"{_entry(matrix, apart, hookpoints, 'distance matrix')}; a layer's distance to itself is 0. "
            "Are these similarities? Give 1 - similarity."
        )


def _entry(matrix: np.ndarray, mask: np.ndarray, hookpoints: tuple[str, ...], what: str) -> str:
    p, q = np.argwhere(mask)[0]
    return f"The {what} has {matrix[p, q]:g} between {hookpoints[p]} and {hookpoints[q]}"
