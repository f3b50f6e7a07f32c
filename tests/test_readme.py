"""The README is true: its code runs, its commands exist, its tree is the tree."""

import re
from pathlib import Path

import pytest

import groupsae
from groupsae.cli import OTHER_VERBS, STAGE_VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SMALLER = {
    '"HuggingFaceTB/SmolLM2-135M"': '"demo"',
    '"corpus/"': '"demo"',
    "1_000_000": "20_000",
    "num_tokens=50_000_000": "num_tokens=20_000, scale_tokens=10_000",
}
"""What makes the ten lines on a real model run on the built-in one."""


def test_the_first_ten_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[0]
    for real, small in SMALLER.items():
        assert real in code
        code = code.replace(real, small)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["suite"].partition == groupsae.Suite.load("suites/smollm2").partition == names["groups"]
    assert names["latents"]["layers.3"].dense().shape[-1] == 8 * 128


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    assert names["layers"] == tuple(f"layers.{layer}" for layer in range(7))
    assert names["latents"].shape == (len(names["x"]), 8 * 128)
    assert 1 <= len(names["groups"]) < len(names["baseline"].partition) == 7
    assert 0 < float(capsys.readouterr().out.split()[-1]) < 1
    assert groupsae.Suite.load("suites/demo").partition == names["groups"]


def test_the_public_names_are_a_list_that_is_kept():
    assert groupsae.__all__ == [
        "BatchTopKConfig",
        "CachedActivations",
        "Distances",
        "GatedConfig",
        "GroupsaeError",
        "Harvester",
        "JumpReLUConfig",
        "MatryoshkaConfig",
        "Partition",
        "ReLUConfig",
        "RunConfig",
        "RunContext",
        "RunDirectory",
        "Scales",
        "Suite",
        "TokenRows",
        "TopKConfig",
        "TrainConfig",
        "WarmStart",
        "angular_distances",
        "evaluate_losses",
        "evaluate_reconstruction",
        "export_dictionary_learning",
        "export_saelens",
        "export_sparsify",
        "find_hookpoints",
        "group_layers",
        "import_suite",
        "load_config",
        "load_model",
        "measure_distances",
        "measure_scales",
        "paper_cost",
        "residual_stream",
        "run_all",
        "train",
    ]
    assert all(getattr(groupsae, name) for name in groupsae.__all__)


@pytest.mark.parametrize("line", re.findall(r"^groupsae ([a-z].*)$", README, re.MULTILINE))
def test_every_command_has_a_verb(line):
    verbs = re.match(r"[a-z| ]+", line)[0].split("|") if "|" in line.split("RUN")[0] else [line.split()[0]]
    assert {verb.strip() for verb in verbs} <= {*STAGE_VERBS, *OTHER_VERBS}


def test_every_script_it_names_is_there():
    scripts = re.findall(r"^python ([\w/]+\.py)", README, re.MULTILINE)
    assert scripts and all((ROOT / name).exists() for name in scripts)


def test_every_config_it_names_is_there():
    for name in re.findall(r"configs/[\w./-]+\.toml", README):
        assert (ROOT / name).exists()


def test_the_tree_names_every_module_and_nothing_else():
    tree = README.split("groupsae/\n", 1)[1].split("```", 1)[0].split("tests/", 1)[0]
    listed = set(re.findall(r"^  ([\w.]+/?)", tree, re.MULTILINE))
    package = ROOT / "groupsae"
    there = {f"{p.name}/" if p.is_dir() else p.name for p in package.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert listed == {name for name in there if not name.startswith("__pycache__")}
