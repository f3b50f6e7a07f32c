"""`positions.json`: which positions of a run are left out, and what share of the variance they hold."""

from __future__ import annotations

from typing import ClassVar

from groupsae.records.types.record import Record


class PositionsRecord(Record):
    """What a sample of rows says of special tokens and outliers (`groupsae.activations.positions`)."""

    path: ClassVar[str] = "positions.json"

    skip_first: int
    """Positions at the start of each row that are left out."""
    max_norm: float
    """Norms above this many medians are left out; 0 where norms do not count."""
    median_norm: dict[str, float]
    """By hookpoint, over ordinary positions."""
    shares: dict[str, float]
    """Of all positions: `special`, `first`, `norm`."""
    variance_share: dict[str, float]
    """By hookpoint: the share of the variance that the positions left out hold."""
    num_positions: int
    """Positions of the sample."""

    @property
    def left_out(self) -> float:
        """The share of positions that are left out."""
        return sum(self.shares.values())

    @property
    def sentence(self) -> str:
        """What is left out, in words."""
        layer = max(self.variance_share, key=self.variance_share.__getitem__)
        return (
            f"{self.left_out:.2%} of the positions are left out (special tokens {self.shares['special']:.2%}, first in "
            f"a row {self.shares['first']:.2%}, norm above {self.max_norm:g} medians {self.shares['norm']:.2%}). They "
            f"hold {self.variance_share[layer]:.1%} of the variance at {layer}, where they hold most."
        )
