"""A finished run of eight layers, shared by the tests that only read it."""

from __future__ import annotations

import pytest
from run_builder import make_run

from groupsae.records import RunDirectory


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """All stages done but the report."""
    return make_run(tmp_path_factory.mktemp("runs") / "eight", layers=8)
