"""The price of a run on one or many GPUs that are not at hand: seconds and bytes, calculated and not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from groupsae.activations.shuffle import BufferLayout
from groupsae.errors import FitError
from groupsae.partition import Group
from groupsae.planning.cluster import assign
from groupsae.planning.cost import Cost, run_cost
from groupsae.planning.memory import Footprint, Memory, predict_memory
from groupsae.planning.mesh import GroupWork, Mesh, MeshCost, mesh_cost
from groupsae.planning.roofline import Gpu, StepParts, StepShape, model_seconds, step_parts

USABLE_SHARE = 0.94
"""Share of a GPU's memory that tensors can have: the rest is the driver's, and what the allocator cannot join."""
MOST_GPUS = 512
"""Where the search for the fewest GPUs that a run fits on ends."""


@dataclass(frozen=True)
class GpuSetting:
    """`num_gpus` of one kind on `num_nodes` nodes. `model_dtype` and `step_dtype` are the precisions of the products;
    `may_cut` says whether a dictionary can be cut over several."""

    gpu: Gpu
    num_gpus: int = 1
    num_nodes: int = 1
    model_dtype: str = "bfloat16"
    step_dtype: str = "bfloat16"
    may_cut: bool = True

    @property
    def usable_bytes(self) -> float:
        """Bytes of one GPU that tensors can have."""
        return USABLE_SHARE * self.gpu.memory


@dataclass(frozen=True)
class GpuRun:
    """The run whose price is asked: its footprint, `k`, and tokens per SAE; `scale_tokens` are read before training."""

    footprint: Footprint
    k: int
    num_tokens: int
    scale_tokens: int
    layers_per_token: int | str


@dataclass(frozen=True)
class GpuCost:
    """Calculated cost of a run: seconds per token of the language model and of one SAE's step, the mesh, and the memory
    of each rank. `fits` says whether every rank has room; where not, seconds are as if it had."""

    read_per_token: float
    step: StepParts
    mesh: MeshCost
    memory: tuple[Memory, ...]
    fits: bool

    @property
    def busiest_memory(self) -> Memory:
        """The memory of the rank that needs most."""
        return max(self.memory, key=lambda memory: memory.device)


def gpu_cost(setting: GpuSetting, run: GpuRun, groups: Sequence[Group], ours: Cost) -> GpuCost:
    """What training these groups in one pass takes on these GPUs. `ours` is `run_cost` of the same."""
    size, groups = run.footprint, tuple(dict.fromkeys(groups))
    deepest = run_cost(size.architecture, groups, 1, 1, size.context_length).harvest
    blocks = _blocks(size, deepest)
    read = model_seconds(setting.gpu, deepest, blocks, size.batch_rows * size.context_length, setting.model_dtype)
    shape = StepShape(size.architecture.d_model, size.d_sae, run.k, size.batch_tokens, setting.step_dtype)
    step = step_parts(setting.gpu, shape)
    work = [_group_work(run, group, step.total, read / deepest) for group in groups]
    seconds = (ours.harvest / deepest + run.scale_tokens) * read
    mesh, fits = _mesh(setting, work, seconds, _room(setting, run, groups))
    memory = tuple(_rank_memory(run, groups, mesh, rank) for rank in range(setting.num_gpus))
    fits = fits and max(one.device for one in memory) <= setting.usable_bytes
    return GpuCost(read, step, mesh, memory, fits)


def fewest_gpus(setting: GpuSetting, run: GpuRun, groups: Sequence[Group], ours: Cost) -> int | None:
    """The fewest GPUs of this kind, in one node, on which these groups fit; None if more than 512 are needed."""
    groups = tuple(dict.fromkeys(groups))
    held = [_held_bytes(run, group) for group in groups]
    for count in range(1, MOST_GPUS + 1):
        one = replace(setting, num_gpus=count, num_nodes=1)
        try:
            assign(
                [1.0] * len(groups),
                count,
                may_cut=setting.may_cut,
                group_bytes=held,
                rank_bytes=_room(one, run, groups),
            )
        except FitError:
            continue
        if gpu_cost(one, run, groups, ours).fits:
            return count
    return None


def _blocks(size: Footprint, flops: float) -> int:
    """How many blocks these FLOPs per token run through."""
    model = size.architecture
    counts = range(1, model.num_layers + 1)
    return next((n for n in counts if model.forward_flops(size.context_length, n) >= flops), model.num_layers)


def _group_work(run: GpuRun, group: Group, step_seconds: float, seconds_per_flop: float) -> GroupWork:
    size = run.footprint
    alone = run_cost(size.architecture, (group,), 1, run.num_tokens, size.context_length, run.layers_per_token).harvest
    return GroupWork(
        train_seconds=run.num_tokens * step_seconds,
        read_alone_seconds=alone * seconds_per_flop,
        activation_bytes=run.num_tokens * size.architecture.d_model * size.bytes_per_number,
        held_bytes=_held_bytes(run, group),
    )


def _mesh(setting: GpuSetting, work: Sequence[GroupWork], seconds: float, room: float) -> tuple[MeshCost, bool]:
    mesh = Mesh(setting.num_gpus, setting.num_nodes, setting.gpu.link, setting.gpu.network, room)
    try:
        return mesh_cost(work, seconds, mesh, may_cut=setting.may_cut), True
    except FitError:
        return mesh_cost(work, seconds, replace(mesh, rank_bytes=math.inf), may_cut=setting.may_cut), False


def _held_bytes(run: GpuRun, group: Group) -> float:
    """Weights, Adam's moments and the buffer of one group."""
    own = replace(run.footprint, num_saes=1, num_slots=len(_layout((group,), run)), biases=0, ordered_layers=len(group))
    return 3 * own.learned_bytes + predict_memory(own).buffer


def _room(setting: GpuSetting, run: GpuRun, groups: Sequence[Group]) -> float:
    """Bytes that a rank has for groups: without the language model, what a step needs for the moment, and an even
    share of the rows that are read to be sent."""
    slots = len(_layout(groups, run)) if setting.num_gpus > 1 else 0
    bare = predict_memory(replace(run.footprint, num_saes=0, num_slots=slots, on_device=True))
    return max(0.0, setting.usable_bytes - (bare.device - bare.buffer) - bare.buffer / setting.num_gpus)


def _rank_memory(run: GpuRun, groups: Sequence[Group], mesh: MeshCost, rank: int) -> Memory:
    """One rank's: the language model, its groups or slices with their buffer, and the rows it has read to send."""
    plan = mesh.plan
    owned = plan.groups_of(rank)
    size = replace(run.footprint, num_saes=1, on_device=True, biases=0)
    learned = math.ceil(sum(size.learned_bytes / len(plan.owners[group]) for group in owned))
    slots = len(_layout([groups[group] for group in owned], run))
    to_send = plan.rows[rank] * len(_layout(groups, run)) if plan.num_ranks > 1 else 0
    bare = predict_memory(replace(size, num_slots=1, ordered_layers=1))
    return replace(
        bare,
        buffer=math.ceil(bare.buffer * (slots + to_send)),
        sae_weights=learned,
        adam_moments=2 * learned,
        disk=predict_memory(run.footprint).disk,
    )


def _layout(groups: Sequence[Group], run: GpuRun) -> BufferLayout:
    return BufferLayout.of(groups, every_layer=run.layers_per_token == "all")
