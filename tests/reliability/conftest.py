"""Signals as in a terminal, and the figures of the reliability tests, printed after all of them."""

from __future__ import annotations

import signal

import pytest
from torture import FIGURES


@pytest.fixture(autouse=True, scope="session")
def signals_arrive():
    """A process started in the background ignores SIGINT; the commands under test then rightly do so too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_terminal_summary(terminalreporter):
    """Print what was tried and measured."""
    if FIGURES:
        terminalreporter.section("reliability")
        for figure in FIGURES:
            terminalreporter.line(figure)
