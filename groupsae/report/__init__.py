"""The report of a run: one self-contained HTML file. Only draws; numbers come from `groupsae.analysis`."""

from groupsae.report.page import write_report

__all__ = ["write_report"]
