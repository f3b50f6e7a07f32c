"""A price for every partition: FLOPs by the paper's count and by ours, seconds, memory, disk, quality."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from groupsae.activations.shuffle import BufferLayout
from groupsae.config import PerLayer
from groupsae.oom import free_memory
from groupsae.partition import Group, Partition
from groupsae.planning.cost import Cost, paper_cost, run_cost, sparse_step_flops
from groupsae.planning.memory import Available, Footprint, Memory, predict_memory
from groupsae.planning.on_gpus import GpuCost, GpuRun, GpuSetting, gpu_cost


@dataclass(frozen=True)
class Rates:
    """Seconds measured on this machine: reading one token, one SAE's step on a batch of `batch_tokens`."""

    read_per_token: float
    step: float
    batch_tokens: int


@dataclass(frozen=True)
class Price:
    """What training these groups in one pass costs. `seconds` is None without rates.

    With `on_gpu`, seconds and memory are calculated for GPUs that need not be at hand.
    """

    paper: Cost
    ours: Cost
    seconds: float | None
    memory: Memory
    on_gpu: GpuCost | None = None


@dataclass(frozen=True)
class Pricing:
    """Prices partitions for one run: its sizes, its budget of tokens, and its measured rates.

    `scale_tokens` are those read before training, in all passes; `per_layer` is what layers have of their own. With
    `gpus`, seconds and memory are calculated for these, whatever `rates` say.
    """

    footprint: Footprint
    k: int
    num_tokens: int
    scale_tokens: int
    rates: Rates | None = None
    layers_per_token: int | str = 1
    per_layer: PerLayer = field(default_factory=PerLayer)
    gpus: GpuSetting | None = None

    def price(self, groups: Sequence[Group]) -> Price:
        """The price of these groups, trained side by side.

        seconds = (tokens read + scale_tokens) * read + G * num_tokens / batch_tokens * step

        Tokens read by a part of the blocks only count in proportion. On GPUs, see `mesh_cost`.
        """
        run = self.footprint
        model, distinct = run.architecture, tuple(dict.fromkeys(groups))
        flops = sparse_step_flops(model.d_model, run.d_sae, self.k) + self.per_layer.flops(model.d_model)
        ours = run_cost(model, distinct, flops, self.num_tokens, run.context_length, self.layers_per_token)
        deepest = run_cost(model, distinct, flops, 1, run.context_length).harvest
        on_gpu = gpu_cost(self.gpus, self.gpu_run(distinct), distinct, ours) if self.gpus else None
        return Price(
            paper=paper_cost(model, len(distinct), run.d_sae, run.context_length, self.num_tokens),
            ours=ours,
            seconds=on_gpu.mesh.seconds if on_gpu else self._seconds(len(distinct), ours.harvest / deepest),
            memory=on_gpu.busiest_memory if on_gpu else predict_memory(self.footprint_of(distinct)),
            on_gpu=on_gpu,
        )

    def gpu_run(self, groups: Sequence[Group]) -> GpuRun:
        """These groups as a run whose price on GPUs is asked."""
        return GpuRun(self.footprint_of(groups), self.k, self.num_tokens, self.scale_tokens, self.layers_per_token)

    def footprint_of(self, groups: Sequence[Group]) -> Footprint:
        """What a run that trains these groups occupies."""
        slots = BufferLayout.of(groups, every_layer=self.layers_per_token == "all")
        biases = sum(len(group) for group in set(groups) if len(group) > 1) * self.per_layer.bias
        layers = sum(map(len, set(groups)))
        return replace(
            self.footprint,
            num_saes=len(set(groups)),
            num_slots=len(slots),
            biases=biases,
            k=self.k,
            ordered_layers=layers,
        )

    def _seconds(self, num_saes: int, tokens_read: float) -> float | None:
        if self.rates is None:
            return None
        reading = (tokens_read + self.scale_tokens) * self.rates.read_per_token
        return reading + num_saes * self.num_tokens / self.rates.batch_tokens * self.rates.step


def union(*partitions: Partition) -> tuple[Group, ...]:
    """The groups of several partitions, each once."""
    return tuple(dict.fromkeys(group for partition in partitions for group in partition.groups))


def available(folder: Path) -> Available:
    """Free main memory and disk space at a folder, in bytes; what cannot be told is not checked."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return Available(host=free_memory(), disk=shutil.disk_usage(existing).free)
