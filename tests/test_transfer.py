"""`groupsae transfer` on a tiny model."""

from __future__ import annotations

import json
import shutil

import pytest

from groupsae.config import load_config

LAYERS = [f"layers.{layer}" for layer in range(3)]


@pytest.fixture
def refused(call):
    """Runs a command that must end as a user's mistake does; gives its message."""

    def run(*arguments):
        code, _, err = call(*arguments)
        assert code == 2 and "Traceback" not in err, err
        return err.strip().splitlines()[-1]

    return run


def test_transfer_makes_a_run_beside_its_source_and_shows_where_its_saes_come_from(done, call):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    code, out, err = call("transfer", "tiny.toml", "--from", done, "--direction", "forward", "--num-tokens", 128)
    assert code == 0, err
    assert "no layer comes before layers.0, so it is trained from scratch" in err
    run = done.parent / "tiny-forward"
    origins = {name: json.loads((run / "groups" / name / "cfg.json").read_text())["lineage"] for name in LAYERS}
    assert origins["layers.0"] == {"tokens": 128, "origin": None}
    assert origins["layers.1"]["origin"]["hookpoint"] == "layers.0"
    assert origins["layers.1"]["origin"]["run"] == str(done)
    assert origins["layers.1"]["origin"]["suite"] == "baseline"
    assert origins["layers.1"]["origin"]["lineage"]["tokens"] == 512
    assert "started forward from baseline of" in out
    assert load_config(run / "config.toml").train.warm_start.source == str(done)
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before
    stages = json.loads(call("show", run, "--json")[1])["stages"]
    assert {stage: facts["status"] for stage, facts in stages.items()} == dict.fromkeys(
        ("tokens", "train", "contexts", "eval", "browse", "report"), "done"
    )
    assert "not there yet" not in (run / "report" / "index.html").read_text().lower()


def test_transfer_of_a_run_directory_specializes_its_groups_beside_it(done, call):
    code, out, err = call("transfer", done, "--from", done, "--direction", "group", "--num-tokens", 64, "--json")
    assert code == 0, err
    saes = json.loads(out)["saes"]
    assert sorted(saes) == LAYERS
    assert {sae["origin"]["suite"] for sae in saes.values()} == {"groups"}
    assert (done.parent / "tiny-group" / "suite.json").exists()
    code, _, err = call("transfer", done.parent / "tiny-group", "--num-tokens", 64)  # goes on with its own config
    assert code == 0 and "complete" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--from", "runs/nowhere"), ("no run directory runs/nowhere",)),
        (("--from", "runs/tiny", "--suite", "other"), ("has no suite 'other'", "baseline, groups")),
        ((), ("needs --from",)),
        (("--from", "runs/tiny", "--out", "runs/tiny", "--overwrite"), ("cannot start from itself",)),
    ],
)
def test_a_source_that_is_not_there_is_refused_before_anything_is_written(done, refused, flags, words):
    message = refused("transfer", "tiny.toml", "--num-tokens", 64, *flags)
    assert all(word in message for word in words), message
    assert not (done.parent / "tiny-backward").exists()


def test_a_damaged_source_is_refused_naming_the_file(done, refused):
    weights = done / "groups" / "layers.1" / "sae.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + bytes(4))
    assert "layers.1/sae.safetensors is damaged: it is not the file" in refused("transfer", "tiny.toml", "--from", done)
    weights.write_bytes(whole[:100])
    shutil.rmtree(done / "groups" / "layers.0")
    assert "is damaged" in refused("transfer", "tiny.toml", "--from", done, "--direction", "forward")
    (done / "suite.json").unlink()
    assert "no suite.json" in refused("transfer", "tiny.toml", "--from", done)
    assert not (done.parent / "tiny-backward").exists()


def test_saes_of_another_width_are_refused_naming_the_key(done, here, refused):
    text = (here / "tiny.toml").read_text()
    (here / "wider.toml").write_text(text.replace("expansion = 2", "expansion = 3"))
    message = refused("transfer", "wider.toml", "--from", done, "--num-tokens", 64)
    assert "sae.d_sae: 32 -> 48" in message and "set these keys alike" in message


def test_a_hookpoint_that_the_source_lacks_is_refused(done, here, refused):
    text = (here / "tiny.toml").read_text().replace("batch_rows = 4", 'batch_rows = 4\nhookpoints = ["layers.*"]')
    (here / "deeper.toml").write_text(text)
    assert "no SAE of layers.3 (for layers.2)" in refused("transfer", "deeper.toml", "--from", done)


def test_a_run_with_a_warm_start_has_no_groups_to_plan(done, call, refused):
    assert call("transfer", "tiny.toml", "--from", done, "--num-tokens", 64)[0] == 0
    assert "has no stage 'plan'" in refused("plan", done.parent / "tiny-backward")
