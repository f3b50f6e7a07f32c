"""The docs are whole: links lead somewhere, the index names every page, and the reference is current."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == DOCS else str(page.parent.name))
def test_relative_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in LINK.findall(text) if "://" not in link and not link.startswith("mailto:")]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_index_names_every_page():
    named = set(LINK.findall((DOCS / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= named


def test_the_reference_of_public_names_is_current():
    pytest.importorskip("griffe2md", reason="griffe2md, which makes the reference, is not installed")
    sys.modules.pop("api_reference", None)
    made = runpy.run_path(str(ROOT / "tools" / "api_reference.py"))["page"]()
    assert made == (DOCS / "api.md").read_text(encoding="utf-8"), "run: python tools/api_reference.py"
