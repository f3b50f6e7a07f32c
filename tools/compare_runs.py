"""Compare the numbers of two runs: the largest relative difference of every file that both have.

    python tools/compare_runs.py RUN OTHER [--tolerance 1e-6]

Reads the weights and scales (safetensors), the distances, and everything in `eval/`. Keys that differ only in spelling
are matched by `RENAMED`. Exits with 1 if a difference is above the tolerance, or if a file, a
tensor or a number is missing in one of the runs. Times are left out: no two runs have the same.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FILES = ("groups/*/sae.safetensors", "scales.safetensors", "distances.json", "eval/*.json")
TIMES = ("seconds",)
RENAMED = {"centre": "center"}
"""Words in keys that one of the runs may spell in an older way."""


def main() -> None:
    """Print a line for each file, and exit with 1 if the runs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2)
    parser.add_argument("--tolerance", type=float, default=1e-6, help="the largest relative difference allowed")
    options = parser.parse_args()
    differences = {name: difference(*(run / name for run in options.runs)) for name in names(*options.runs)}
    for name, found in differences.items():
        print(f"{name}: {found}" if isinstance(found, str) else f"{name}: {found:.3g}")
    too_large = [found for found in differences.values() if isinstance(found, str) or not found <= options.tolerance]
    sys.exit(1 if too_large or not differences else 0)


def names(*runs: Path) -> list[str]:
    """The files that are compared: those that any of the runs has."""
    found = {str(file.relative_to(run)) for run in runs for pattern in FILES for file in run.glob(pattern)}
    return sorted(found)


def difference(one: Path, other: Path) -> float | str:
    """The largest relative difference of two files; in words if they do not hold the same names."""
    for file in (one, other):
        if not file.exists():
            return f"{file} is missing"
    if one.read_bytes() == other.read_bytes():
        return 0.0
    if one.suffix == ".safetensors":
        return of_values(
            *({renamed(name): tensor for name, tensor in load_file(file).items()} for file in (one, other))
        )
    return of_values(*(dict(leaves(json.loads(file.read_text()))) for file in (one, other)))


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text of nested JSON, with the keys that lead to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in TIMES:
                yield from leaves(inner, f"{key}/{renamed(name)}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from leaves(inner, f"{key}/{place}")
    else:
        yield key, value


def renamed(name: str) -> str:
    """A key as it is spelled now."""
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def of_values(one: dict[str, Any], other: dict[str, Any]) -> float | str:
    """The largest relative difference of values of the same names."""
    if one.keys() != other.keys():
        return f"only in one of them: {', '.join(sorted(one.keys() ^ other.keys())[:5])}"
    worst = 0.0
    for name, value in one.items():
        found = relative(value, other[name])
        if isinstance(found, str):
            return f"{name}: {found}"
        worst = max(worst, found)
    return worst


def relative(one: Any, other: Any) -> float | str:
    """The difference of two values as a share of the larger; of tensors, of their norms."""
    if isinstance(one, torch.Tensor):
        if one.shape != other.shape:
            return f"{tuple(one.shape)} and {tuple(other.shape)}"
        one, other = one.double(), other.double()
        return ((one - other).norm() / torch.maximum(one.norm(), other.norm()).clamp_min(1e-300)).item()
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return 0.0 if one == other else abs(one - other) / max(abs(one), abs(other), math.ulp(0.0))
    return 0.0 if one == other else f"{one!r} and {other!r}"


if __name__ == "__main__":
    main()
