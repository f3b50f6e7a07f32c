"""The examples run: here on few tokens, as they are with `-m slow`, and the notebook cell by cell."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from groupsae import Suite

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = ("train_a_suite", "compare_groups", "transfer_to_finetuned", "steer_through_layers")
SMALL = {"MAX_TOKENS": 12_000, "TOKENS": 2_048, "STEPS": 3}


def load(name):
    """An example as a module, with fewer tokens."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for constant, value in SMALL.items():
        if hasattr(module, constant):
            setattr(module, constant, value)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which the first example has run, and what it printed."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        load("train_a_suite").main()
    return folder


def test_the_first_example_saves_a_suite(trained, monkeypatch):
    monkeypatch.chdir(trained)
    suite = Suite.load("suites/demo")
    assert suite.partition.hookpoints == tuple(f"layers.{number}" for number in range(7))
    with pytest.raises(SystemExit, match="exists"):
        load("train_a_suite").main()


def test_groups_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    load("compare_groups").main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2", "4", "7"]
    costs = [int(row[3].rstrip("%")) for row in rows]
    assert costs == sorted(costs) and costs[-1] == 100
    assert all(0 < float(row[1]) <= float(row[2]) for row in rows)


def test_a_suite_follows_its_model_through_fine_tuning(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    load("transfer_to_finetuned").main()
    lines = capsys.readouterr().out.splitlines()
    before, after = map(float, re.search(r"from ([\d.]+) to ([\d.]+) nats", lines[0]).groups())
    assert after < before
    assert [line[:9] for line in lines[2:]] == ["old suite", "old suite", "trained o", "from scra"]
    old, warm = ([float(value) for value in line.split()[-3:]] for line in lines[3:5])
    assert sum(warm) < sum(old)


def test_a_latent_is_steered_through_the_layers_of_its_group(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    module = load("steer_through_layers")
    module.main()
    out = capsys.readouterr().out
    assert re.match(r"latent \d+ of group layers", out)
    written = re.findall(r"^(.+?)\s+[\d.]+%  '(.*)'$", out, re.MULTILINE)
    assert len(written) == 4 and written[0][0] == "no steering" and written[3][0].startswith("all of")
    assert written[0][1] != written[3][1]


def test_smollm2_is_steered_by_the_same_steps(tmp_path, monkeypatch, capsys):
    """The script on a small model of the same family, whose layers are named alike."""
    from tiny import save_model, tiny_model, tiny_text

    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model", tiny_model("llama", layers=17))
    (tmp_path / "book.txt").write_text(tiny_text(3_000))
    arguments = ["steer_smollm2.py", "model", "--text", "book.txt", "--tokens", "2048", "--strengths", "0.5"]
    monkeypatch.setattr(sys, "argv", arguments)
    module = load("steer_smollm2")
    monkeypatch.setattr(module, "CONTEXT", 32)
    module.main()
    first = capsys.readouterr().out
    assert "FVU" in first and first.count("one layer") == first.count("its group") == 2
    module.main()
    assert "FVU" not in capsys.readouterr().out
    assert Suite.load("suites/smollm2").partition.names == ("layers.12-15",)


def test_the_notebook_runs_cell_by_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "model_to_steering.ipynb").read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {}
    for number, code in enumerate(codes):
        exec(compile(code, f"cell {number}", "exec"), names)
        names["TOKENS"] = 2_048
    out = capsys.readouterr().out
    assert "7 layers of width 128" in out and out.count("FVU") == 7
    assert [line.split("  ")[0].strip() for line in out.splitlines()[-3:]] == ["no steering", "one layer", "its group"]


@pytest.mark.slow
def test_the_examples_run_as_they_are(tmp_path):
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in SCRIPTS:
        command = [sys.executable, f"examples/{name}.py"]
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
        assert found.returncode == 0, found.stderr
        assert found.stdout
