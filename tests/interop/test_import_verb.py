"""`groupsae import`: the run that it makes can be evaluated, reported, exported and started from."""

import json
from pathlib import Path

import pytest
import torch

from groupsae import RunDirectory, Suite, import_suite

PLACE = ("--to", "saelens", "--suite", "baseline", "--out", "theirs")


@pytest.fixture
def theirs(done, call):
    """The files that another tool would have left, in the working directory."""
    assert call("export", done, *PLACE)[0] == 0
    return "theirs"


@pytest.fixture
def imported(theirs, call):
    """The run that they were imported into."""
    code, out, err = call("import", theirs, "--out", "runs/back", "--config", "tiny.toml")
    assert code == 0, err
    assert out.startswith("runs/back: 3 SAEs of 3 layers of") and "topk, 32 latents" in out
    return "runs/back"


def test_an_imported_run_is_evaluated_and_reported_like_the_one_it_came_from(imported, call, done):
    code, _, err = call("run", imported)
    assert code == 0, err
    mine, its = (json.loads((done.parent / name / "eval/reconstruction.json").read_text()) for name in ("back", "tiny"))
    for layer, measured in mine["suites"]["baseline"].items():
        assert measured["fvu"] == pytest.approx(its["suites"]["baseline"][layer]["fvu"], rel=1e-5)
    assert (done.parent / "back" / "report" / "index.html").exists()
    assert [line.split()[1] for line in call("show", imported)[1].splitlines() if " done " in line] == [
        "tokens",
        "train",
        "contexts",
        "eval",
        "browse",
        "report",
    ]


def test_it_is_compared_with_the_run_it_came_from(imported, call, done):
    assert call("tokens", imported)[0] == 0
    code, out, err = call("eval", done, "reconstruction", "--against", imported, "--json")
    assert code == 0, err
    suites = json.loads(out)["suites"]
    assert suites["back/baseline"]["mean_fvu"] == pytest.approx(suites["baseline"]["mean_fvu"], rel=1e-5)


def test_it_says_where_it_comes_from(imported, done):
    record = json.loads((done.parent / "back" / "import.json").read_text())
    assert (record["source"], record["format"]) == ("theirs", "saelens")
    assert record["saes"]["layers.1"]["config"]["metadata"]["group_layers"] == ["layers.1"]
    origin = Suite.load(imported)["layers.1"].sae.lineage.origin
    assert (origin.direction, origin.run, origin.hookpoint) == ("import", "theirs", "layers.1")
    assert origin.suite == "saelens: layers.1/sae_weights.safetensors" and len(origin.sha256) == 64


def test_it_is_exported_again_with_the_same_weights(imported, theirs, call):
    assert call("export", imported, "--to", "saelens", "--out", "again")[0] == 0
    one, other = (Suite.load(imported), import_suite("again"))
    x_ND = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    for hookpoint in one.partition.hookpoints:
        torch.testing.assert_close(other[hookpoint](x_ND), one[hookpoint](x_ND))


def test_a_training_starts_from_it(imported, call):
    code, _, err = call("transfer", imported, "--from", imported, "--num-tokens", "256", "--out", "runs/warm")
    assert code == 0, err
    assert RunDirectory.open(Path("runs/warm")).config.train.imported is None
    lineage = Suite.load("runs/warm")["layers.0"].sae.lineage
    assert lineage.tokens == 256 and lineage.origin.lineage.origin.direction == "import"


def test_it_trains_nothing_and_compares_no_layers(imported, call):
    code, _, err = call("train", imported, "--overwrite")
    assert code == 2 and "its SAEs were imported" in err
    code, _, err = call("plan", imported)
    assert code == 2 and "no stage 'plan': its SAEs were imported (saelens theirs)" in err


def test_a_run_that_is_there_is_not_replaced_unless_asked_for(imported, theirs, call):
    code, _, err = call("import", theirs, "--out", "runs/back", "--config", "tiny.toml")
    assert code == 2 and "holds SAEs already" in err
    assert call("import", theirs, "--out", "runs/back", "--config", "tiny.toml", "--overwrite")[0] == 0
    code, _, err = call("import", "runs/back", "--out", "runs/more")
    assert code == 2 and "is a suite of groupsae already" in err


def test_the_source_is_an_input_of_the_run(imported, theirs, call, here):
    assert RunDirectory.open(here / imported).status("train") == "done"
    weights = here / theirs / "layers.1" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert RunDirectory.open(here / imported).status("train") == "stale"


def test_a_model_must_be_named_if_the_files_do_not(theirs, call, here):
    for cfg in (here / theirs).rglob("cfg.json"):
        values = json.loads(cfg.read_text())
        del values["metadata"]["model_name"]
        cfg.write_text(json.dumps(values))
    code, _, err = call("import", theirs, "--out", "runs/back")
    assert code == 2 and "does not name the language model" in err and not (here / "runs" / "back").exists()
    model = json.loads((here / "runs" / "tiny" / "manifest.json").read_text())["model"]["name"]
    assert call("import", theirs, "--out", "runs/back", "--model", model)[0] == 0


def test_a_fault_in_the_files_leaves_no_run(theirs, call, here):
    (here / theirs / "layers.1" / "cfg.json").write_text("{")
    code, _, err = call("import", theirs, "--out", "runs/back", "--config", "tiny.toml")
    assert code == 2 and "layers.1/cfg.json is missing or damaged" in err
    assert not (here / "runs" / "back").exists()


def test_a_source_is_needed_and_help_needs_none(call):
    code, _, err = call("import")
    assert code == 2 and "needs a SOURCE" in err
    assert call("import", "--help")[0] == 0
