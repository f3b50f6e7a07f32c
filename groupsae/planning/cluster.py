"""Which rank trains which group, and which share of the rows each rank reads: the same on every rank, without torch.

A rank is one process with one device. Groups are independent given the order of tokens, so each belongs to one
rank, or is cut by latents over several. Reading is shared so that all ranks finish together: ranks with much
training read less, ranks without a group read more. docs/scale.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from groupsae.errors import ConfigError, FitError
from groupsae.units import format_bytes

CUT_OVERHEAD = 0.05
"""Extra cost of a dictionary that is cut: candidates are gathered and partial reconstructions summed at each step."""
_FINER = (math.inf, 1.0, 0.5, 0.25)
"""Largest costs of a piece that are tried, in units of the mean cost per rank."""


@dataclass(frozen=True)
class ClusterPlan:
    """Who trains what, and who reads how much.

    `owners[g]` are the ranks of group g; with several, the i-th holds the i-th slice of its latents
    (`latent_slices`). `rows[r]` is the share of the rows that rank r reads; they sum to 1. `training[r]` is the
    predicted cost of the groups of rank r (`piece_costs` included), `read_cost` that of reading all rows, in the unit
    of the costs given.
    """

    owners: tuple[tuple[int, ...], ...]
    rows: tuple[float, ...]
    training: tuple[float, ...]
    read_cost: float

    @property
    def num_ranks(self) -> int:
        """The number of processes."""
        return len(self.rows)

    @property
    def costs(self) -> tuple[float, ...]:
        """Predicted cost of each rank: training and reading."""
        return tuple(own + share * self.read_cost for own, share in zip(self.training, self.rows, strict=True))

    @property
    def imbalance(self) -> float:
        """Cost of the busiest rank over the mean; 1 is perfect, and what is above 1 is waiting. 1 without any cost."""
        mean = math.fsum(self.costs) / self.num_ranks
        return max(self.costs) / mean if mean else 1.0

    @property
    def readers_only(self) -> tuple[int, ...]:
        """Ranks without a group, which only read."""
        busy = {rank for ranks in self.owners for rank in ranks}
        return tuple(rank for rank in range(self.num_ranks) if rank not in busy)

    def groups_of(self, rank: int) -> tuple[int, ...]:
        """The groups that a rank owns, whole or a slice of."""
        return tuple(group for group, ranks in enumerate(self.owners) if rank in ranks)

    def row_counts(self, num_rows: int, batch_rows: int = 1) -> tuple[int, ...]:
        """How many of a block's rows each rank reads, the first rank the first ones; they sum to `num_rows`.

        Only whole batches of `batch_rows` are handed out, so that every number of ranks cuts the language
        model's batches alike; the last batch may be shorter. Largest remainders get what is left, lower
        ranks first. Zero is allowed. Raises ConfigError for negative rows or an empty batch.
        """
        if num_rows < 0 or batch_rows < 1:
            raise ConfigError(f"num_rows = {num_rows}, batch_rows = {batch_rows}; they must be at least 0 and 1.")
        batches = _apportion(-(-num_rows // batch_rows), self.rows)
        ends = [min(num_rows, batch_rows * sum(batches[: rank + 1])) for rank in range(self.num_ranks)]
        return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def assign(
    costs: Sequence[float],
    num_ranks: int,
    *,
    read_cost: float = 0.0,
    ranks_per_node: int | None = None,
    may_cut: bool = True,
    group_bytes: Sequence[float] | None = None,
    rank_bytes: float | None = None,
    piece_costs: Sequence[float] | None = None,
) -> ClusterPlan:
    """Divide groups and rows among ranks so that the busiest rank finishes as early as can be.

    `costs[g]` is the predicted cost of training group g (seconds, or FLOPs), `read_cost` that of reading all
    rows, in the same unit. Groups are placed longest first, each on the least busy rank, ties to the lower rank.
    A group is cut by latents where it does not fit on a rank (`group_bytes` against `rank_bytes`, what a rank has
    left for SAEs), or where it would keep the others waiting. Its slices lie on one node where that has room, and
    only memory cuts it over more.
    `may_cut` = False for architectures that cannot be cut. `piece_costs[g]` is what each owner of group g pays
    whatever its slice, such as receiving the group's activations; without it cuts look cheaper than they are.
    Nothing depends on anything but the arguments.

    Raises ConfigError for impossible numbers; FitError if the groups do not fit on so many ranks.
    """
    _require(costs, num_ranks, read_cost, ranks_per_node, {"group_bytes": group_bytes, "piece_costs": piece_costs})
    sizes, fixed = (list(values) if values else [0.0] * len(costs) for values in (group_bytes, piece_costs))
    room = math.inf if rank_bytes is None else rank_bytes
    least = [_pieces_to_fit(group, size, room, num_ranks, may_cut) for group, size in enumerate(sizes)]
    mean = (math.fsum(costs) + read_cost) / num_ranks
    found: list[tuple[float, ClusterPlan]] = []
    node = min(num_ranks, ranks_per_node or num_ranks)
    for limit in _FINER if may_cut else _FINER[:1]:
        wanted = [min(node, _ceil(cost / (limit * mean))) if mean else 1 for cost in costs]
        pieces = [max(pair) for pair in zip(least, wanted, strict=True)]
        each = [piece_cost(cost, count) + own for cost, count, own in zip(costs, pieces, fixed, strict=True)]
        plan = _place(each, sizes, pieces, num_ranks, node, room, read_cost)
        if plan is not None:
            found.append((max(plan.costs), plan))
    if not found:
        raise FitError(
            f"{len(costs)} groups with {format_bytes(sum(sizes))} of weights and optimizer state do not fit on "
            f"{num_ranks} rank(s) with {format_bytes(room)} each; use more ranks, fewer groups, or a smaller sae.d_sae."
        )
    return min(found, key=lambda pair: pair[0])[1]


def latent_slices(num_latents: int, pieces: int) -> tuple[slice, ...]:
    """The latents of each piece of a dictionary: contiguous, their numbers differing by at most one.

    Raises ConfigError for more pieces than latents.
    """
    if not 1 <= pieces <= num_latents:
        raise ConfigError(f"pieces = {pieces}; a dictionary of {num_latents} latents has 1 to {num_latents} of them.")
    ends = [num_latents * (piece + 1) // pieces for piece in range(pieces)]
    return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))


# ---- groups


def _place(
    each: Sequence[float],
    sizes: Sequence[float],
    pieces: Sequence[int],
    num_ranks: int,
    ranks_per_node: int,
    room: float,
    read_cost: float,
) -> ClusterPlan | None:
    """The pieces of the costliest group first, each on the least busy rank with room for it; None without room.

    `each[g]` is the cost of one piece of group g, `pieces[g]` their number.
    """
    load, left = [0.0] * num_ranks, [room] * num_ranks
    owners: list[tuple[int, ...]] = [()] * len(each)
    for group in sorted(range(len(each)), key=lambda group: (-each[group], -sizes[group] / pieces[group], group)):
        size = sizes[group] / pieces[group]
        roomy = [rank for rank in range(num_ranks) if left[rank] >= size]
        chosen = _least_busy(load, roomy, pieces[group], ranks_per_node)
        if chosen is None:
            return None
        for rank in chosen:
            load[rank] += each[group]
            left[rank] -= size
        owners[group] = chosen
    return ClusterPlan(tuple(owners), _shares(load, read_cost), tuple(load), read_cost)


def piece_cost(cost: float, pieces: int) -> float:
    """Cost of one of the equal pieces that a group's training is cut into; whole, nothing is added."""
    return cost if pieces == 1 else cost / pieces * (1 + CUT_OVERHEAD)


def _least_busy(load: Sequence[float], ranks: Sequence[int], count: int, ranks_per_node: int) -> tuple[int, ...] | None:
    """The `count` least busy of these ranks, of one node where one has so many; None if there are too few."""
    order = sorted(ranks, key=lambda rank: (load[rank], rank))
    nodes: dict[int, list[int]] = {}
    for rank in order:
        nodes.setdefault(rank // ranks_per_node, []).append(rank)
    within = [node[:count] for node in nodes.values() if len(node) >= count]
    if within:
        order = min(within, key=lambda node: (load[node[-1]], node[-1]))
    return tuple(sorted(order[:count])) if len(order) >= count else None


def _pieces_to_fit(group: int, size: float, room: float, num_ranks: int, may_cut: bool) -> int:
    pieces = _ceil(size / room) if room > 0 else num_ranks + 1
    if pieces <= (num_ranks if may_cut else 1):
        return pieces
    why = f"even cut over {num_ranks} rank(s)" if may_cut else "and this architecture cannot be cut"
    raise FitError(
        f"Group {group} needs {format_bytes(size)} for weights and optimizer state; a rank has "
        f"{format_bytes(max(room, 0))} for SAEs, {why}. Use more ranks or a smaller sae.d_sae."
    )


# ---- rows


def _shares(load: Sequence[float], read_cost: float) -> tuple[float, ...]:
    """Shares of the rows with which the ranks finish together, as far as reading can even out training.

    The level up to which each rank is filled: sum over ranks of max(0, level - load) = read_cost.
    Equal shares where reading costs nothing.
    """
    if read_cost == 0:
        return (1 / len(load),) * len(load)
    filled, level = sorted(load), 0.0
    for count in range(1, len(filled) + 1):
        level = (read_cost + math.fsum(filled[:count])) / count
        if count == len(filled) or level <= filled[count]:
            break
    taken = [max(0.0, level - own) for own in load]
    whole = math.fsum(taken)
    return tuple(own / whole for own in taken)


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers nearest to shares of a total, which sum to it: largest remainders first, ties to the first."""
    exact = [total * share for share in shares]
    counts = [math.floor(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda place: (counts[place] - exact[place], place))
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _ceil(value: float) -> int:
    """At least 1; a hair above a whole number is rounding."""
    return max(1, math.ceil(value - 1e-9))


def _require(
    costs: Sequence[float],
    num_ranks: int,
    read_cost: float,
    ranks_per_node: int | None,
    by_group: Mapping[str, Sequence[float] | None],
) -> None:
    if not costs:
        raise ConfigError("There is no group to divide among ranks; give at least one cost.")
    if num_ranks < 1 or (ranks_per_node is not None and ranks_per_node < 1):
        raise ConfigError(f"num_ranks = {num_ranks}, ranks_per_node = {ranks_per_node}; both must be at least 1.")
    for name, values in (("costs", costs), ("read_cost", (read_cost,)), *by_group.items()):
        strange = [value for value in values or () if not (math.isfinite(value) and value >= 0)]
        if strange:
            raise ConfigError(f"{name}: {strange[0]} is impossible; it must be finite and at least 0.")
        if name in by_group and values is not None and len(values) != len(costs):
            raise ConfigError(f"{name} has {len(values)} numbers, costs has {len(costs)}; give one per group.")
