"""The benchmarks run, and judge fairly: on tiny shapes, peers only where they are installed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from tiny import save_model, tiny_model, tiny_text

BENCH = Path(__file__).parents[1] / "bench"
PEER_OF = {"saelens": "sae_lens", "sparsify-adam": "sparsify", "sparsify-default": "sparsify"}


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of bench/ by its name."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model and a text."""
    folder = tmp_path_factory.mktemp("files")
    save_model(folder / "model", tiny_model(layers=4))
    lines = [json.dumps({"text": f"{number} {tiny_text(20, number)}"}) for number in range(40)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def task(bench, files, tmp_path):
    """A tiny task, prepared in tmp_path."""
    module = bench("task")
    sizes = {"d_sae": 32, "k": 4, "batch_tokens": 64, "buffer_tokens": 256, "batch_rows": 1, "threads": 1}
    task = module.Task(num_tokens=640, scale_tokens=128, distance_tokens=256, eval_tokens=128, seed=0, **sizes)
    module.prepare(task, tmp_path, str(files / "model"), str(files / "text.jsonl"))
    return task


def test_every_contestant_is_measured_or_said_to_be_missing(bench, capsys):
    shape = bench("unit").Shape(d_model=16, d_sae=64, k=4, batch=32)
    rows = bench("step").measure(shape, repeats=3)
    printed = capsys.readouterr().out
    assert rows[0]["name"] == "groupsae"
    assert all(row["units"] > 0 for row in rows)
    missing = set(bench("steps").contestants()) - {row["name"] for row in rows}
    assert all(f"{name}: left out" in printed for name in missing)


def test_a_contestant_that_cannot_be_imported_stops_nothing(bench, capsys, monkeypatch):
    def absent(shape):
        raise ImportError("No module named 'absent'")

    step, steps = bench("step"), bench("steps")
    monkeypatch.setattr(step, "contestants", lambda: {"absent": absent, "groupsae": steps.groupsae})
    rows = step.measure(bench("unit").Shape(16, 64, 4, 32), repeats=3)
    assert [row["name"] for row in rows] == ["groupsae"]
    assert "absent: left out, No module named 'absent'" in capsys.readouterr().out


def test_our_kernels_are_measured_on_a_device_beside_their_floor(bench, capsys):
    rows = bench("step").on_device(torch.device("cpu"), [bench("unit").Shape.parse("16x64x4x32")], repeats=3)
    assert {row["kernel"] for row in rows} == {"gather", "dense"}
    assert {row["kernel"] for row in rows if row["chosen"]} == {"gather"}
    assert all(row["step_ms"] > row["floor_ms"] > 0 and row["floors"] > 1 for row in rows)
    assert capsys.readouterr().out.count("| 16 | 64 | 4 | 32 |") == len(rows)


def test_a_kernel_that_does_not_run_leaves_a_gap_in_the_table(bench, capsys, monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler was found\nand more")

    kernels = bench("kernels")
    monkeypatch.setattr(kernels.DenseKernel, "decode", staticmethod(fails))
    rows = kernels.measure_kernels(bench("unit").Shape(16, 64, 4, 32), torch.device("cpu"), repeats=2)
    assert {row["kernel"] for row in rows} == {"gather"}
    assert "dense: left out, no compiler was found |" in capsys.readouterr().out


def test_every_part_of_our_step_is_found(bench):
    parts = bench("parts")
    costs = parts.measure_parts(bench("unit").Shape(16, 512, 4, 64), repeats=2)
    assert set(costs) == {*parts.PARTS, "step"}
    assert [part for part, cost in costs.items() if not cost > 0] == []


@pytest.mark.parametrize("name", ["groupsae-layers", "groupsae-groups", "groupsae-groups-then-layers", *PEER_OF])
def test_a_contender_trains_every_layer_and_is_judged(bench, task, tmp_path, name):
    if name in PEER_OF:
        pytest.importorskip(PEER_OF[name])
    contender = bench("contenders").CONTENDERS[name](task, tmp_path, tmp_path / name)
    contender.train()
    contender.suite().save(tmp_path / name / "suite")
    found = {name: {}}
    bench("end_to_end").judge(task, tmp_path, found)
    assert list(found[name]["fvu"]) == ["layers.0", "layers.1", "layers.2"]
    assert all(0 < fvu < 10 for fvu in found[name]["fvu"].values())


def test_a_conversion_that_changes_reconstructions_is_refused(bench, task):
    random = torch.Generator().manual_seed(0)
    weights = {"W_enc": (32, 16), "b_enc": (32,), "W_dec": (32, 16), "b_dec": (16,)}
    tensors = {name: torch.randn(shape, generator=random) for name, shape in weights.items()}
    bound = bench("task").suite_of(task, {"layers.0": tensors})["layers.0"]
    x_ND = torch.randn(10, 16, generator=random)

    def original(x_ND):
        values_NK, indices_NK = ((x_ND - tensors["b_dec"]) @ tensors["W_enc"].T + tensors["b_enc"]).topk(4)
        latents_NS = torch.zeros(len(x_ND), 32).scatter(1, indices_NK, values_NK.relu())
        return latents_NS @ tensors["W_dec"] + tensors["b_dec"]

    bench("task").require_same(bound, original, x_ND)
    with pytest.raises(RuntimeError, match=r"layers\.0: 10 of 10"):
        bench("task").require_same(bound, lambda x_ND: 2 * original(x_ND), x_ND)
