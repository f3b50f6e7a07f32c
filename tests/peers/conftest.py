"""Tests against other tools, each in an environment that has it (`make test-peers`); elsewhere they are skipped.

`measured(tool, architecture, what, difference)` collects what was found; a table of it is printed at the end.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "interop"))

FOUND = []


@pytest.fixture
def measured():
    """Notes a largest difference and requires it to be at most `limit`."""

    def note(tool, architecture, what, difference, limit=1e-5):
        row = {"tool": tool, "version": version(tool), "architecture": architecture, "what": what}
        FOUND.append(row | {"difference": float(difference)})
        assert difference <= limit

    return note


def pytest_terminal_summary(terminalreporter):
    """The table, one line per tool, architecture and direction; as JSON lines to the file that PEERS_TABLE names."""
    worst = {}
    for row in FOUND:
        key = (row["tool"], row["version"], row["architecture"], row["what"])
        worst[key] = max(worst.get(key, 0.0), row["difference"])
    if not worst:
        return
    terminalreporter.section("largest differences")
    for (tool, release, architecture, what), difference in worst.items():
        terminalreporter.write_line(f"{tool} {release:<9} {architecture:<24} {what:<28} {difference:.1e}")
    if "PEERS_TABLE" in os.environ:
        lines = [json.dumps([*key, difference]) for key, difference in worst.items()]
        with open(os.environ["PEERS_TABLE"], "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
