"""What a run takes on several GPUs as one mesh, and what the same groups would take as a job each: calculated.

In a mesh every row is read once, by some rank, and its activations are sent to the ranks that train on them. In
an array of jobs each job reads for itself. docs/scale.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from groupsae.errors import ConfigError, FitError
from groupsae.planning.cluster import ClusterPlan, assign, piece_cost


@dataclass(frozen=True)
class GroupWork:
    """What one group takes: seconds of its steps, seconds of reading if nothing else were trained, bytes of the
    activations it trains on, and bytes it occupies on its rank."""

    train_seconds: float
    read_alone_seconds: float
    activation_bytes: float
    held_bytes: float


@dataclass(frozen=True)
class Mesh:
    """`num_ranks` processes, one GPU each, on `num_nodes` nodes; bytes per second within and between nodes, per rank.

    `rank_bytes` is what a rank has left for groups. Raises ConfigError where ranks do not divide by nodes.
    """

    num_ranks: int
    num_nodes: int
    link: float
    network: float
    rank_bytes: float

    def __post_init__(self) -> None:
        if self.num_ranks < 1 or self.num_nodes < 1 or self.num_ranks % self.num_nodes:
            raise ConfigError(
                f"{self.num_ranks} GPUs on {self.num_nodes} nodes: every node needs the same number, at least one."
            )

    @property
    def ranks_per_node(self) -> int:
        """Ranks of one node."""
        return self.num_ranks // self.num_nodes


@dataclass(frozen=True)
class RankWork:
    """What one rank does: seconds of training, reading and exchanging; bytes it receives and holds for its groups."""

    train: float
    read: float
    exchange: float
    received_bytes: float
    held_bytes: float

    @property
    def in_turn(self) -> float:
        """Seconds where the three take turns."""
        return self.train + self.read + self.exchange

    @property
    def overlapped(self) -> float:
        """Seconds where the next block is exchanged while this one is trained on."""
        return max(self.train + self.read, self.exchange)


@dataclass(frozen=True)
class MeshCost:
    """A run on a mesh, and as an array of jobs, one per group.

    `useful_seconds` is the work that one GPU without waiting, sending and repeating would do. `array_work` are the
    seconds of all jobs, `array_seconds` how long they take on as many GPUs.
    """

    plan: ClusterPlan
    ranks: tuple[RankWork, ...]
    useful_seconds: float
    array_work: float
    array_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of the run, reading, exchanging and training in turn: those of the busiest rank."""
        return max(rank.in_turn for rank in self.ranks)

    @property
    def overlapped_seconds(self) -> float:
        """Seconds of the run if exchanging hides behind training."""
        return max(rank.overlapped for rank in self.ranks)

    @property
    def useful_share(self) -> float:
        """Share of all ranks' time that is useful work; the rest is waiting, exchanging and what cuts cost."""
        return self.useful_seconds / (len(self.ranks) * self.seconds)

    @property
    def overlapped_share(self) -> float:
        """The same if exchanging hides behind training."""
        return self.useful_seconds / (len(self.ranks) * self.overlapped_seconds)

    @property
    def array_share(self) -> float:
        """Share of the work of an array of jobs that is not repeated reading."""
        return self.useful_seconds / self.array_work


def mesh_cost(work: Sequence[GroupWork], read_seconds: float, mesh: Mesh, *, may_cut: bool = True) -> MeshCost:
    """The run on this mesh, groups and rows divided by `assign`. `read_seconds` is one pass over the text for all.

        useful share    (A + sum T_g) / (N max_r (T_r + rho_r A + X_r))
        of a job array  (A + sum T_g) / sum (A_g + T_g)

    A is `read_seconds`, A_g what group g alone would read, T the seconds of training, X of the exchange, rho the
    share of the rows. The exchange depends on the division, so several are tried: with the cost of receiving left
    out, counted half and in full, and without cuts. The fastest is taken. Raises FitError where the groups do not fit.
    """
    found: list[MeshCost] = []
    for cut, counted in _divisions(may_cut, mesh):
        try:
            found.append(_cost(_divide(work, read_seconds, mesh, cut, counted), work, read_seconds, mesh))
        except FitError:
            if not found and (cut, counted) == _divisions(may_cut, mesh)[-1]:
                raise
    return min(found, key=lambda cost: cost.seconds)


def _divisions(may_cut: bool, mesh: Mesh) -> list[tuple[bool, float]]:
    """Whether dictionaries may be cut, and the share of the cost of receiving that the division counts."""
    if mesh.num_ranks == 1:
        return [(False, 0.0)]
    return [(cut, counted) for cut in dict.fromkeys((False, may_cut)) for counted in (0.0, 0.5, 1.0)]


def _divide(work: Sequence[GroupWork], read_seconds: float, mesh: Mesh, cut: bool, counted: float) -> ClusterPlan:
    slowest = mesh.network if mesh.num_nodes > 1 else mesh.link
    return assign(
        [one.train_seconds for one in work],
        mesh.num_ranks,
        read_cost=read_seconds,
        ranks_per_node=mesh.ranks_per_node,
        may_cut=cut,
        group_bytes=[one.held_bytes for one in work],
        rank_bytes=mesh.rank_bytes,
        piece_costs=[counted * one.activation_bytes / slowest for one in work],
    )


def _cost(plan: ClusterPlan, work: Sequence[GroupWork], read_seconds: float, mesh: Mesh) -> MeshCost:
    jobs = [one.train_seconds + one.read_alone_seconds for one in work]
    return MeshCost(
        plan=plan,
        ranks=tuple(_rank_work(rank, plan, work, read_seconds, mesh) for rank in range(mesh.num_ranks)),
        useful_seconds=math.fsum(one.train_seconds for one in work) + read_seconds,
        array_work=math.fsum(jobs),
        array_seconds=max(assign(jobs, mesh.num_ranks, may_cut=False).training),
    )


def _rank_work(rank: int, plan: ClusterPlan, work: Sequence[GroupWork], read_seconds: float, mesh: Mesh) -> RankWork:
    exchange, received = _exchange(rank, plan, work, mesh)
    owned = [(work[group], len(plan.owners[group])) for group in plan.groups_of(rank)]
    return RankWork(
        train=math.fsum(piece_cost(one.train_seconds, pieces) for one, pieces in owned),
        read=plan.rows[rank] * read_seconds,
        exchange=exchange,
        received_bytes=received,
        held_bytes=math.fsum(one.held_bytes / pieces for one, pieces in owned),
    )


def _exchange(rank: int, plan: ClusterPlan, work: Sequence[GroupWork], mesh: Mesh) -> tuple[float, float]:
    """Seconds in which a rank sends and receives activations, both ways at once, and the bytes it receives.

    A rank that owns a group, or a slice of it, receives all of the group's activations that others read.
    """
    node = rank // mesh.ranks_per_node
    near = range(node * mesh.ranks_per_node, (node + 1) * mesh.ranks_per_node)
    near_rows = math.fsum(plan.rows[other] for other in near)
    owned = math.fsum(work[group].activation_bytes for group in plan.groups_of(rank))
    near_in, far_in = owned * (near_rows - plan.rows[rank]), owned * max(0.0, 1 - near_rows)
    near_out = far_out = 0.0
    for group, owners in enumerate(plan.owners):
        read = work[group].activation_bytes * plan.rows[rank]
        beside = sum(owner in near for owner in owners if owner != rank)
        near_out += read * beside
        far_out += read * (sum(owner != rank for owner in owners) - beside)
    seconds = max(near_in, near_out) / mesh.link + max(far_in, far_out) / mesh.network
    return seconds, near_in + far_in
