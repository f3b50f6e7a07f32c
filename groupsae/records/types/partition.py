"""`partition.json`: the partition that the group stage chose, and all that it considered."""

from __future__ import annotations

from typing import ClassVar

from groupsae.records.types.candidate import Candidate
from groupsae.records.types.record import Record


class PartitionRecord(Record):
    """The choice of the group stage. Costs and predictions are not known yet."""

    path: ClassVar[str] = "partition.json"

    choice: Candidate
    why: str
    """The rule that chose it, in words."""
    candidates: dict[str, tuple[Candidate, ...]]
    """By method, then by number of groups from 1 to L."""
