"""The type checker sees every module that defines a public name."""

import tomllib
from pathlib import Path

import pytest

import groupsae

ROOT = Path(__file__).parents[1]
CHECKED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["files"]


@pytest.mark.parametrize("home", sorted(set(groupsae._HOMES.values())))
def test_a_module_of_public_names_is_checked(home):
    path = f"groupsae/{home.replace('.', '/')}"
    assert f"{path}.py" in CHECKED or path in CHECKED


def test_what_is_checked_is_there():
    assert all((ROOT / path).exists() for path in CHECKED)
