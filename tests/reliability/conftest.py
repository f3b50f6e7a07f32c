"""The figures of the reliability tests, printed after all of them."""

from __future__ import annotations

from torture import FIGURES


def pytest_terminal_summary(terminalreporter):
    """Print what was tried and measured."""
    if FIGURES:
        terminalreporter.section("reliability")
        for figure in FIGURES:
            terminalreporter.line(figure)
