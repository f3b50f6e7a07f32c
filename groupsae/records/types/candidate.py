"""A partition that a run could train, with what is known of it before training."""

from __future__ import annotations

from groupsae.estimate import Estimate
from groupsae.partition import Group, Partition
from groupsae.records.types.record import RecordPart


class TokenFlops(RecordPart):
    """10^6 FLOP per SAE token: the cost of training divided by the tokens that each SAE sees."""

    language_model: float
    saes: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.language_model + self.saes


class Cost(RecordPart):
    """What training some groups in one pass costs; None for what is not known."""

    published_mflop: TokenFlops | None
    """By the published count: one forward pass and a dense step per SAE, C = A + T G (arXiv 2410.21508)."""
    own_mflop: TokenFlops | None
    """By our count of what is computed."""
    published_flops: float | None
    """FLOP of the whole training, by the published count."""
    own_flops: float | None
    """FLOP of the whole training, by our count."""
    seconds: float | None
    """Predicted from a few timed batches; None without them."""
    device_bytes: float
    """Peak memory of the accelerator; 0 without one."""
    host_bytes: float
    """Peak main memory."""
    disk_bytes: float

    @property
    def memory_bytes(self) -> float:
        """Peak memory where the SAEs are trained: the accelerator's, or main memory without one."""
        return self.device_bytes or self.host_bytes


class Candidate(RecordPart):
    """A partition, what the distances say of it, its cost when trained alone, and the quality predicted for it."""

    method: str
    """How it was found: `optimal`, `complete`, `published`, `equal`, or a file's name."""
    groups: tuple[Group, ...]
    amad: float | None = None
    size_weighted_amad: float | None = None
    largest_diameter: float | None = None
    mean_angle: float | None = None
    cost: Cost | None = None
    fvu: Estimate | None = None
    """Mean FVU over layers with its 80 % interval, after a pilot."""
    fvu_increase: Estimate | None = None
    """FVU as a share above that of one SAE per layer (0.1 is 10 % more), with its 80 % interval."""
    delta_ce_increase: Estimate | None = None
    """Likewise for delta CE, from the published suites."""

    @property
    def num_groups(self) -> int:
        """The number of SAEs."""
        return len(self.groups)

    @property
    def partition(self) -> Partition:
        """The groups as a Partition."""
        return Partition(self.groups)

    @property
    def published_mflop(self) -> float | None:
        """10^6 FLOP per SAE token by the published count."""
        return self.cost.published_mflop.total if self.cost and self.cost.published_mflop else None

    @property
    def own_mflop(self) -> float | None:
        """10^6 FLOP per SAE token by our count."""
        return self.cost.own_mflop.total if self.cost and self.cost.own_mflop else None

    @property
    def seconds(self) -> float | None:
        """Predicted seconds of training."""
        return self.cost.seconds if self.cost else None

    @property
    def memory_bytes(self) -> float | None:
        """Predicted peak memory where the SAEs are trained."""
        return self.cost.memory_bytes if self.cost else None

    @property
    def disk_bytes(self) -> float | None:
        """Predicted size of the run's files."""
        return self.cost.disk_bytes if self.cost else None
