"""The report of a run: one self-contained HTML file, and the numbers in it. Needs neither torch nor transformers."""

from groupsae.report.page import write_report
from groupsae.report.summary import SuiteSummary, summarize

__all__ = ["SuiteSummary", "summarize", "write_report"]
