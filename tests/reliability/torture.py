"""How often things are tried: a little by default, a lot under `make torture`, which sets GROUPSAE_TORTURE=1."""

from __future__ import annotations

import os

TORTURE = os.environ.get("GROUPSAE_TORTURE") == "1"
FIGURES: list[str] = []
"""What was tried and measured, printed at the end of the test run."""


def times(short: int, long: int) -> int:
    """How many times: the short number, or the long one under torture."""
    return long if TORTURE else short


def note(figure: str) -> None:
    """Have a figure printed at the end of the test run."""
    FIGURES.append(figure)
