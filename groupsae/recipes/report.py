"""The report stage: one HTML file of whatever has been done."""

from __future__ import annotations

from groupsae.recipes.context import RunContext
from groupsae.report.page import write_report


def report(ctx: RunContext) -> list[str]:
    """The report: `report/index.html`."""
    write_report(ctx.run)
    return ["report/index.html"]
