"""A price for every partition: FLOPs by the paper's count and by ours, seconds, memory, disk, quality."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groupsae.partition import Group, Partition
from groupsae.planning.cost import Cost, paper_cost, run_cost, sparse_step_flops
from groupsae.planning.memory import Available, Footprint, Memory, predict_memory


@dataclass(frozen=True)
class Rates:
    """Seconds measured on this machine: reading one token, one SAE's step on a batch of `batch_tokens`."""

    read_per_token: float
    step: float
    batch_tokens: int


@dataclass(frozen=True)
class Price:
    """What training these groups in one pass costs. `seconds` is None without rates."""

    paper: Cost
    ours: Cost
    seconds: float | None
    memory: Memory


@dataclass(frozen=True)
class Pricing:
    """Prices partitions for one run: its sizes, its budget of tokens, and its measured rates."""

    footprint: Footprint
    k: int
    num_tokens: int
    scale_tokens: int
    rates: Rates | None = None

    def price(self, groups: Sequence[Group]) -> Price:
        """The price of these groups, trained side by side.

        seconds = (num_tokens + scale_tokens) * read + G * num_tokens / batch_tokens * step
        """
        run = self.footprint
        model, distinct = run.architecture, tuple(dict.fromkeys(groups))
        flops = sparse_step_flops(model.d_model, run.d_sae, self.k)
        return Price(
            paper=paper_cost(model, len(distinct), run.d_sae, run.context_length, self.num_tokens),
            ours=run_cost(model, distinct, flops, self.num_tokens, run.context_length),
            seconds=self._seconds(len(distinct)),
            memory=predict_memory(self.footprint_of(distinct)),
        )

    def footprint_of(self, groups: Sequence[Group]) -> Footprint:
        """What a run that trains these groups occupies."""
        return replace(self.footprint, num_saes=len(set(groups)))

    def _seconds(self, num_saes: int) -> float | None:
        if self.rates is None:
            return None
        reading = (self.num_tokens + self.scale_tokens) * self.rates.read_per_token
        return reading + num_saes * self.num_tokens / self.rates.batch_tokens * self.rates.step


def union(*partitions: Partition) -> tuple[Group, ...]:
    """The groups of several partitions, each once."""
    return tuple(dict.fromkeys(group for partition in partitions for group in partition.groups))


def available(folder: Path) -> Available:
    """Free main memory and disk space at a folder, in bytes; what cannot be told is not checked."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return Available(host=_free_memory(), disk=shutil.disk_usage(existing).free)


def _free_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
