"""What the plan says beforehand, read so that older plans and plans without weights do: unknown is None."""

from __future__ import annotations

from dataclasses import dataclass

from groupsae.partition import Partition
from groupsae.report.data import Record, RunData, as_groups

PAPERS_BOUND = 0.2
"""The published rule takes the fewest groups whose AMAD, by complete linkage, is below this (arXiv 2410.21508)."""


@dataclass(frozen=True)
class Interval:
    """A predicted value, and the ends of its 80 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Offer:
    """A partition with its price when trained alone and the quality predicted for it; None for what is not known."""

    method: str
    partition: Partition
    amad: float | None
    size_weighted_amad: float | None
    largest_diameter: float | None
    paper_mflop: float | None
    """Per token of the language model, by the published model: one dense step per SAE."""
    own_mflop: float | None
    """The same for the steps that are really taken, and only the layers that are run."""
    seconds: float | None
    memory_bytes: float | None
    """On the device, or in main memory where there is none."""
    disk_bytes: float | None
    fvu: Interval | None
    """Mean FVU over layers, after a pilot."""
    increase: Interval | None
    """FVU as a share above that of one SAE per layer: 0.1 is a tenth more."""

    @property
    def num_groups(self) -> int:
        """The number of SAEs."""
        return len(self.partition)


@dataclass(frozen=True)
class Outlook:
    """Every partition that was considered: those of the run's own method, and by method."""

    method: str
    own: tuple[Offer, ...]
    methods: dict[str, tuple[Offer, ...]]
    chosen: Offer | None
    """What the run takes, if its method offers it."""
    papers: Offer | None
    """What the published rule takes, where distances are angular."""

    @property
    def everything(self) -> tuple[Offer, ...]:
        """The offers of every method, and the run's own first."""
        others = [offer for name, offers in self.methods.items() if name != self.method for offer in offers]
        return (*self.own, *others)

    @property
    def quality(self) -> str | None:
        """What is predicted of every partition: `fvu` after a pilot, else its `increase`, or nothing."""
        found = (key for key in ("fvu", "increase") if self.own and all(getattr(offer, key) for offer in self.own))
        return next(found, None)

    @property
    def cost(self) -> str | None:
        """What partitions are best compared by: `seconds` if they are predicted, else `own_mflop`."""
        keys = ("seconds", "own_mflop")
        return next((key for key in keys if all(getattr(offer, key) is not None for offer in self.everything)), None)

    def singletons(self) -> Offer | None:
        """One SAE per layer, by whatever method."""
        return next((offer for offer in self.everything if set(map(len, offer.partition.groups)) == {1}), None)

    def of_size(self, num_groups: int) -> Offer | None:
        """A partition of this many groups, by whatever method: what it takes depends on little else."""
        return next((offer for offer in self.everything if offer.num_groups == num_groups), None)


def look_ahead(data: RunData) -> Outlook:
    """The plan's offers; without a plan there are none."""
    plan = data.plan or {}
    method = str(plan.get("method") or "the choice")
    own = _offers(method, data.candidates)
    rows = {str(name): found for name, found in (plan.get("methods") or {}).items() if found}
    methods = {name: _offers(name, found) for name, found in rows.items()} or {method: own}
    chosen = next((offer for offer in own if offer.partition == data.chosen), None)
    return Outlook(method, own, methods, chosen, _papers_choice(data, methods.get("complete", ())))


def _papers_choice(data: RunData, complete: tuple[Offer, ...]) -> Offer | None:
    if data.distances is not None and data.distances.get("metric") != "angular":
        return None
    return next((offer for offer in complete if offer.amad is not None and offer.amad < PAPERS_BOUND), None)


def _offers(method: str, rows: list[Record]) -> tuple[Offer, ...]:
    return tuple(_offer(method, row) for row in sorted(rows, key=lambda row: row["num_groups"]))


def _offer(method: str, row: Record) -> Offer:
    return Offer(
        method=method,
        partition=Partition(as_groups(row["groups"])),
        amad=row.get("amad"),
        size_weighted_amad=row.get("size_weighted_amad"),
        largest_diameter=row.get("largest_diameter"),
        paper_mflop=(row.get("mflop_per_token") or {}).get("total"),
        own_mflop=(row.get("own_mflop_per_token") or {}).get("total"),
        seconds=row.get("seconds"),
        memory_bytes=row.get("device_bytes") or row.get("host_bytes"),
        disk_bytes=row.get("disk_bytes"),
        fvu=interval(row.get("fvu")),
        increase=interval(row.get("fvu_increase")),
    )


def interval(record: Record | None) -> Interval | None:
    """A prediction as the plan writes it; None where there is none."""
    if not record or record.get("value") is None:
        return None
    value = record["value"]
    low, high = (value if record.get(end) is None else record[end] for end in ("low", "high"))
    return Interval(value, low, high)
