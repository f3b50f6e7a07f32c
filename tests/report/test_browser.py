"""The page in a real browser, where one is installed: it opens from a file, without errors, and works."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from run_builder import hookpoints, make_run
from test_page import FIGURES, HOSTILE

from groupsae.records import RunDirectory
from groupsae.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000",
)  # fmt: skip

PROBE = """<script>
window.addEventListener("load", async () => {
  const note = document.documentElement.dataset;
  const table = document.getElementById("layer-table");
  const layers = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join(" ");
  const head = table.querySelector('[data-column="delta_ce_groups"] button');
  head.click(); note.rising = layers();
  head.click(); note.falling = layers();
  note.csv = asCsv(table);
  const prices = document.getElementById("candidate-table");
  const price = prices.querySelector('[data-column="seconds"] button');
  price.click(); price.click();
  note.dearest = [...prices.tBodies[0].rows].map((row) => row.cells[0].textContent).join(" ");
  note.prices = asCsv(prices);
  const suites = document.getElementById("suite-table");
  const fvu = suites.querySelector('[data-column="mean_fvu"] button');
  fvu.click(); fvu.click();
  note.worst = suites.tBodies[0].rows[0].cells[0].textContent;
  note.suites = asCsv(suites);
  note.folded = [...document.querySelectorAll("#quality details")].filter((fold) => !fold.open).length;
  const group = document.getElementById("group-table");
  group.querySelector('[data-column="layers"] button').click();
  note.groups = asCsv(group);
  note.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
});
</script>"""


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory):
    """Opens a file in a browser; returns the document as it stands then, and the console's complaints."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")

    def open_page(page: Path) -> tuple[str, list[str]]:
        profile = tmp_path_factory.mktemp("profile")
        command = [browser, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_page


def test_it_opens_without_a_complaint_and_shows_every_figure(run: RunDirectory, opened):
    document, complaints = opened(write_report(run))
    assert complaints == []
    assert 'data-ready="yes"' in document
    assert document.count('<svg class="drawing"') == len(FIGURES)


def test_a_run_that_has_only_begun_opens_too(tmp_path: Path, opened):
    document, complaints = opened(write_report(make_run(tmp_path / "early", stages=("tokens", "distances"))))
    assert complaints == []
    assert 'data-ready="yes"' in document
    assert document.count('<svg class="drawing"') == 2


def test_the_table_sorts_and_copies(tmp_path: Path, opened):
    names = hookpoints(4)
    page = write_report(make_run(tmp_path / "four", names=names, groups=[names[:2], names[2:3], names[3:]]))
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    page.write_text(html.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    document, complaints = opened(page)
    note = dict(re.findall(r'data-(\w+)="([^"]*)"', document.partition("<head>")[0]))
    assert complaints == []
    assert note["rising"] == "layers.2 layers.3 layers.0 layers.1"
    assert note["falling"] == "layers.1 layers.0 layers.3 layers.2"
    lines = note["csv"].splitlines()
    assert lines[0].startswith("layer,group,fvu_baseline,fvu_groups,")
    assert lines[1].startswith("layers.1,layers.0-1,0.11,0.13,")
    assert note["dearest"] == "4 3 2 1"
    assert note["prices"].splitlines()[0].startswith("num_groups,chosen_by,amad,")
    assert re.match(r"4,,0\.0,0\.0,0\.0,600\.0,0\.0,260\.0,0\.0,1560\.0,", note["prices"].splitlines()[1])
    assert note["worst"] == "groups"
    assert note["suites"].splitlines()[0] == (
        "suite,num_saes,mean_fvu,mean_delta_ce,all_layers_delta_ce,mean_kl,num_tokens,published_mflop,"
        "own_mflop,published_pflop,seconds,memory_bytes"
    )
    assert note["suites"].splitlines()[1].startswith("groups,3,0.125,")
    assert int(note["folded"]) == 4
    assert note["groups"].splitlines()[1].startswith("layers.2,1,0.12")
    assert note["overflow"] == "0"


def test_a_hostile_folder_name_does_nothing(tmp_path: Path, opened):
    """The commands for what is missing hold the run's path, which --out lets anyone choose."""
    made = make_run(tmp_path / "early", stages=("tokens", "distances"))
    hostile = tmp_path / "<script><img src=x onerror=document.title='owned'>"
    made.path.rename(hostile)
    page = write_report(RunDirectory(hostile, made.config))
    document, complaints = opened(page)
    assert complaints == []
    assert "<img" not in document
    assert "&lt;img src=x onerror" in document
    assert "<title>early · groupsae</title>" in document


def test_hostile_names_do_nothing(tmp_path: Path, opened):
    names = [f"{HOSTILE}.{index}" for index in range(4)]
    run = make_run(tmp_path / "hostile", names=names, model=HOSTILE, groups=[names[:2], names[2:]])
    document, complaints = opened(write_report(run))
    assert complaints == []
    assert "<img" not in document
    assert "<title>hostile · groupsae</title>" in document
    assert 'data-ready="yes"' in document
