"""Writes docs/api.md, the reference of the public names, from their docstrings.

    python tools/api_reference.py [--check]

Reads the sources with griffe and renders them with griffe2md; nothing is imported. With `--check` nothing is written,
and the exit code is 1 if the page is not current.
"""

from __future__ import annotations

import sys
from pathlib import Path

import griffe
from griffe2md import ConfigDict, render_object_docs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
HEAD = """# Public names

`import groupsae as gs` gives these names and no others. Made from the docstrings by `tools/api_reference.py`.
"""
CONFIG = ConfigDict(
    docstring_style="google",
    heading_level=2,
    show_root_full_path=False,
    show_root_members_full_path=False,
    show_signature_annotations=True,
    summary=False,
    members_order="source",
    filters=["!^_", "!^model_config$"],
    show_bases=False,
    line_length=100,
)


def page() -> str:
    """The text of the page."""
    package = griffe.load("groupsae", search_paths=[str(ROOT)], allow_inspection=False, resolve_aliases=True)
    names = sorted(name for name, member in package.members.items() if member.is_alias and not name.startswith("_"))
    public = [name for name in names if name in _homes(package)]
    parts = [render_object_docs(package.members[name].final_target, CONFIG).strip() for name in public]
    lines = "\n\n".join([HEAD.strip(), *parts]).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _homes(package: griffe.Module) -> set[str]:
    """The names that the package lists as its own."""
    return {str(key).strip("\"'") for key in package.members["_HOMES"].value.keys}


def main() -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" in sys.argv:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print("docs/api.md is current" if current else "docs/api.md is not current: python tools/api_reference.py")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
