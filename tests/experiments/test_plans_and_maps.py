"""The experiments on the built-in model run: plans at equal budgets, layer maps, architectures."""

from __future__ import annotations

import json

import architectures
import budgets
import per_layer


def run_script(script, monkeypatch, capsys, *arguments):
    """What a script prints for these arguments; each line of JSON parsed, and the rest."""
    monkeypatch.setattr("sys.argv", [script.__name__, *map(str, arguments)])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")], [line for line in lines if line[:1] == "|"]


def test_plans_are_run_by_name_and_join_those_run_before(place, tmp_path, monkeypatch, capsys):
    arguments = ("--config", place / "tiny.toml", "--out", tmp_path, "--tokens", 64, "--seeds", 0, "--plans")
    rows, table = run_script(budgets, monkeypatch, capsys, *arguments, "groups", "groups, bias")
    assert [row["plan"] for row in rows] == ["groups", "groups, bias"]
    again, table = run_script(budgets, monkeypatch, capsys, *arguments, "groups", "per layer")
    assert [row["plan"] for row in again] == ["groups", "per layer"]
    assert again[0] == rows[0]
    kept = json.loads((tmp_path / "budgets.json").read_text())
    assert [row["plan"] for row in kept] == ["groups", "groups, bias", "per layer"]
    assert [line.split(" | ")[0] for line in table[2:]] == ["| per layer", "| groups", "| groups, bias"]


def test_what_layers_have_of_their_own_is_measured_at_equal_tokens(place, tmp_path, monkeypatch, capsys):
    rows, table = run_script(
        per_layer,
        monkeypatch,
        capsys,
        "--config",
        place / "tiny.toml",
        "--out",
        tmp_path,
        "--tokens",
        64,
        "--seeds",
        0,
    )
    assert len(table) == 2 + len(rows)
    cost = {(row["of"], row["own"]): row["mflop"] for row in rows}
    assert cost["groups", "bias"] == cost["groups", "none"] < cost["groups", "rotation"]


def test_every_architecture_is_trained_in_three_ways(place, tmp_path, monkeypatch, capsys):
    options = ("--config", place / "tiny.toml", "--out", tmp_path, "--tokens", 64, "--transfer", 64, "--architectures")
    rows, _ = run_script(architectures, monkeypatch, capsys, *options, "topk", "gated")
    assert [(row["architecture"], row["trained"]) for row in rows] == [
        (name, way) for name in ("topk", "gated") for way in ("per layer", "groups", "per layer, from its group's")
    ]
    assert all(0 <= row["dead"] <= 1 and row["l0"] > 0 for row in rows)
