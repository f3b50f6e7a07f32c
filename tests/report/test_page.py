"""The page: what stands on it, what it says of missing stages, and that nothing in a run can act in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from run_builder import change_candidates, hookpoints, logged_sae, make_run

from groupsae.analysis.run_records import RunRecords
from groupsae.errors import RunError
from groupsae.partition import Partition
from groupsae.records import STAGE_NAMES, RunDirectory
from groupsae.records.types.distances import DistancesRecord
from groupsae.records.types.plan import PlanRecord
from groupsae.records.types.training import MetricsLine
from groupsae.report import write_report
from groupsae.report.page import render

HOSTILE = "</script></text></style><img src=x onerror=\"document.title='owned'\">$\\alpha$ & {{ 7 * 6 }}"
FIGURES = ("distances", "amad", "candidates", "frontier", "cost", "seconds", "curves", "quality", "sparsity")


def figures_of(html: str) -> list[str]:
    return re.findall(r'<figure id="figure-(\w+)">', html)


def test_a_finished_run_has_every_figure(run: RunDirectory):
    html = write_report(run).read_text(encoding="utf-8")
    assert tuple(figures_of(html)) == FIGURES
    assert html.count('<svg class="drawing"') == len(FIGURES)
    assert "<!DOCTYPE svg" not in html and "<?xml" not in html and "<metadata" not in html


def test_the_report_lies_where_the_run_keeps_it(run: RunDirectory):
    assert write_report(run) == run.file("report/index.html")


def test_the_same_run_gives_the_same_page(run: RunDirectory):
    assert render(run) == render(run)


def test_drawing_leaves_matplotlib_as_it_was(run: RunDirectory):
    before = dict(matplotlib.rcParams)
    render(run)
    assert dict(matplotlib.rcParams) == before


def test_ids_are_unique_and_every_reference_has_its_target(run: RunDirectory):
    html = render(run)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)) != set()
    assert {a or b for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)} <= set(ids)


def test_nothing_is_fetched(run: RunDirectory):
    html = render(run)
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!#|data:image/png|\.\./browser/index\.html)[^"'\s>]+""", html)
    assert not re.findall(r"url\(\s*['\"]?(?!#)", html)
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_figures_take_their_colors_from_the_page(run: RunDirectory):
    html = render(run)
    drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))))
    assert drawn <= {"#ffffff", "#10202b"}, "only the numbers on the heat map, whose ground is fixed"


@pytest.mark.parametrize(
    ("stages", "figures"),
    [
        ((), ()),
        (("tokens", "distances"), ("distances", "seconds")),
        (("tokens", "distances", "group"), ("distances", "amad", "candidates", "seconds")),
        (("tokens", "distances", "group", "plan"), (*FIGURES[:4], "seconds")),
        (("tokens", "distances", "group", "plan", "train"), (*FIGURES[:4], "seconds", "curves")),
        (("plan",), ("amad", "candidates", "frontier", "seconds")),
    ],
)
def test_a_report_says_what_is_missing_and_how_to_make_it(tmp_path: Path, stages, figures):
    run = make_run(tmp_path / "part", layers=5, stages=stages)
    html = render(run)
    assert tuple(figures_of(html)) == figures
    listed = re.findall(r"<li><span><b>\w+</b></span> <code>groupsae (\w+) ", html)
    assert listed == [stage for stage in STAGE_NAMES if stage not in (*stages, "report")]


def test_a_run_that_starts_from_other_saes_has_no_section_of_what_it_does_not_do(tmp_path: Path):
    groups = [[name] for name in hookpoints(3)]
    made = {"layers": 3, "stages": ("tokens", "train", "eval"), "baseline": False, "groups": groups}
    html = render(make_run(tmp_path / "warm", source="runs/first", **made))
    assert figures_of(html) == ["seconds", "curves", "quality", "sparsity"]
    assert not {'id="layers"', 'id="groups"', 'id="plan"'} & set(re.findall(r'<section (id="\w+")', html))
    assert "3 SAEs serve 3 layers; mean FVU 0.110" in html


def test_a_stage_made_from_another_config_is_called_out_of_date(tmp_path: Path):
    run = make_run(tmp_path / "changed", layers=4)
    changed = run.config.model_copy(update={"eval": run.config.eval.model_copy(update={"num_tokens": 7})})
    assert "<b>eval</b> is out of date" in render(RunDirectory.at(run.path, changed, overwrite=True))


def test_names_in_a_run_are_inert(tmp_path: Path):
    names = [f"{HOSTILE}.{index}" for index in range(4)] + ["layers.4.mlp", "$x_1$.5"]
    run = make_run(tmp_path / "hostile", names=names, model=HOSTILE, groups=[names[:2], names[2:3], names[3:]])
    html = render(run)
    assert "<img" not in html
    assert html.count("</script>") == 1
    assert "&lt;/script&gt;" in html
    assert "{{ 7 * 6 }}" in html


@pytest.mark.parametrize("layers", [1, 2, 3, 31])
def test_any_number_of_layers_can_be_drawn(tmp_path: Path, layers: int):
    assert "quality" in figures_of(render(make_run(tmp_path / "size", layers=layers, logged=12)))


def test_groups_need_not_be_neighbors(tmp_path: Path):
    names = hookpoints(5)
    html = render(make_run(tmp_path / "apart", names=names, groups=[names[0::2], names[1::2]]))
    assert "0+2+4" in html and "made by hand" in html


def test_a_plan_without_distances_is_drawn_without_them(tmp_path: Path):
    unknown = dict.fromkeys(("amad", "size_weighted_amad", "largest_diameter", "fvu", "fvu_increase"))
    run = change_candidates(make_run(tmp_path / "unmeasured", layers=4, stages=("plan",)), **unknown)
    html = render(run)
    assert figures_of(html) == ["candidates", "seconds"]
    assert "made by <code>groupsae plan" not in html


def test_what_was_trained_counts_for_more_than_what_is_planned_now(tmp_path: Path):
    run = make_run(tmp_path / "trained", layers=4)
    before = RunRecords.read(run).partitions
    plan = PlanRecord.read(run)
    plan.model_copy(update={"suites": {"groups": Partition.singletons(hookpoints(4)).groups}}).write(run)
    assert RunRecords.read(run).partitions == before
    assert RunRecords.read(run).planned != before


def test_a_partition_read_from_a_file_is_the_only_candidate(tmp_path: Path):
    run = make_run(tmp_path / "file", layers=4, groups=[["layers.0", "layers.1"], ["layers.2", "layers.3"]])
    plan = PlanRecord.read(run)
    choice = plan.choice.model_copy(update={"method": "mine.json"})
    plan.model_copy(update={"method": "mine.json", "candidates": {}, "choice": choice}).write(run)
    html = render(run)
    assert "amad" not in figures_of(html) and "made by hand" not in html
    assert "2 SAEs serve 4 layers at 67\u202f%" in html, "(200 + 2 * 100) / (200 + 4 * 100)"


@pytest.mark.parametrize(("metric", "name"), [("cka", "1 − CKA"), ("svcca", "1 − SVCCA"), ("<b>", "&lt;b&gt;")])
def test_the_metric_is_named(tmp_path: Path, metric: str, name: str):
    run = make_run(tmp_path / "metric", layers=3, stages=("tokens", "distances"))
    DistancesRecord.read(run).model_copy(update={"metric": metric}).write(run)
    assert name in render(run)


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path: Path):
    run = make_run(tmp_path / "cut", layers=3, logged=5)
    with run.file("metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "tok')
    assert [line.step for line in RunRecords.read(run).log] == [10, 20, 30, 40, 50]


def test_a_step_that_was_logged_twice_counts_once(tmp_path: Path):
    run = make_run(tmp_path / "resumed", layers=3, logged=5)
    again = MetricsLine(step=30, tokens=1, groups={"layers.0": logged_sae(0.5)})
    run.append_json("metrics.jsonl", again.model_dump(mode="json"))
    log = RunRecords.read(run).log
    assert [line.step for line in log] == [10, 20, 30, 40, 50]
    assert log[2].tokens == 1


def test_a_damaged_log_names_the_line(tmp_path: Path):
    run = make_run(tmp_path / "damaged", layers=3, logged=2)
    text = run.file("metrics.jsonl").read_text()
    run.write_text("metrics.jsonl", "not json\n" + text)
    with pytest.raises(RunError, match="line 1"):
        RunRecords.read(run)


def test_every_quality_table_says_at_equal_what(run: RunDirectory):
    html = render(run)
    for key in ("summary", "cost"):
        found = re.search(rf'<section id="{key}">.*?</section>', html, re.DOTALL).group()
        assert "at equal tokens: every SAE saw 2\u00a0M tokens" in found
        assert "They would cost as much with" in found


def test_the_report_imports_neither_torch_nor_transformers():
    code = "import sys, groupsae.report; print({'torch', 'transformers'} & set(sys.modules) or 'none')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "none"
