"""What a benchmark found: a Markdown table on stdout and a JSON file, both with what it ran on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from groupsae.records import environment, version_of

PEERS = ("sae-lens", "eai-sparsify", "dictionary-learning")


def set_conditions(threads: int) -> None:
    """Threads, and what peers read when they are imported: no hub, and no Triton kernels for tensors of a CPU."""
    torch.set_num_threads(threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "SPARSIFY_DISABLE_TRITON": "1"}


def conditions() -> dict[str, Any]:
    """What a number depends on: versions (peers included), processor, commit, threads."""
    peers = {name: version_of(name) for name in PEERS}
    return environment() | {"date": date.today().isoformat(), "threads": torch.get_num_threads(), "peers": peers}


def print_conditions(facts: dict[str, Any]) -> None:
    """The same in one line, to stand above a table."""
    peers = ", ".join(f"{name} {number or 'missing'}" for name, number in facts["peers"].items())
    print(
        f"{facts['date']}, commit {facts['commit']}, {facts['processor']}, {facts['threads']} threads, "
        f"torch {torch.__version__}, {peers}\n"
    )


def print_header(columns: Sequence[str]) -> None:
    """The first two lines of a table."""
    print_row(columns)
    print("|" + "---|" * len(columns), flush=True)


def print_row(cells: Iterable[object]) -> None:
    """One line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def write(path: Path, facts: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """The JSON file of a benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"conditions": facts, "rows": rows}, indent=1) + "\n")
    print(f"\nwritten: {path}", flush=True)
