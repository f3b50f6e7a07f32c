"""`groupsae transfer` and `groupsae experiment transfer`, on a tiny model."""

from __future__ import annotations

import json
import shutil

import pytest

from groupsae import cli
from groupsae.config import load_config
from groupsae.recipes import experiment as module
from groupsae.report.transfer import DIRECTIONS

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
        ("tokens", "train", "eval", "report"), "done"
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


# ---- the experiment


FLAGS = ("--experiment.looks", "2")


@pytest.fixture(scope="module")
def experimented(place, tmp_path_factory):
    """A folder with runs/tiny and its transfer experiment. Only to be copied."""
    folder = tmp_path_factory.mktemp("experiment")
    shutil.copytree(place / "runs", folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["experiment", "transfer", "runs/tiny", *FLAGS]) == 0
    return folder


@pytest.fixture
def experiment(experimented, here, call):
    """Runs the experiment on a copy of a run that has it."""
    shutil.copytree(experimented / "runs", here / "runs")
    return lambda *flags: call("experiment", "transfer", "runs/tiny", *FLAGS, *flags)


def test_the_experiment_gives_looks_controls_matrix_and_budgets(here, experiment):
    code, out, err = experiment("--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["num_tokens"] == {"base": 512, "transfer": 256, "eval": 64}
    assert [look["tokens"] for look in record["looks"]] == [128, 256]
    for look in record["looks"]:
        assert set(look["scores"]) == {*DIRECTIONS, "scratch"}
        assert sorted(look["scores"]["forward"]) == LAYERS[1:]
        assert sorted(look["scores"]["backward"]) == LAYERS[:-1]
        assert sorted(look["scores"]["scratch"]) == sorted(look["scores"]["group"]) == LAYERS
        assert all(scores["l0"] <= 4 for kind in look["scores"].values() for scores in kind.values())
    assert {(source, layer) for source, row in record["zero_shot"].items() for layer in row} == {
        (source, layer) for source in LAYERS for layer in LAYERS
    }
    assert [row["key"] for row in record["budgets"]] == ["base", "groups", "specialized", "equal-flops", "equal-time"]
    specialized, equal_flops, equal_time = record["budgets"][2:]
    assert equal_flops["flops"] == pytest.approx(specialized["flops"], rel=0.01)
    assert equal_time["seconds"] == pytest.approx(specialized["seconds"], rel=0.01)
    done = here / "runs" / "tiny"
    page = (done / "report" / "transfer.html").read_text()
    assert page.count("<svg") == 2 and "https://" not in page
    assert not list(done.glob("experiment/*/groups"))


def test_the_base_of_the_experiment_is_what_evaluation_measures(here, experiment):
    done = here / "runs" / "tiny"
    record = json.loads((done / "experiment" / "transfer.json").read_text())
    measured = json.loads((done / "eval" / "reconstruction.json").read_text())["suites"]
    for layer in LAYERS:
        assert record["zero_shot"][layer][layer]["fvu"] == pytest.approx(measured["baseline"][layer]["fvu"])
        assert record["groups"][layer]["fvu"] == pytest.approx(measured["groups"][layer]["fvu"])


def test_the_experiment_is_not_made_twice_nor_replaced_unasked(experiment):
    code, out, err = experiment()
    assert code == 0 and "holds the experiment already" in err and "zero-shot" in out
    code, _, err = experiment("--eval.num-tokens", 32)
    assert code == 2 and "--overwrite" in err


@pytest.mark.slow
def test_an_interrupted_experiment_goes_on_to_the_same_numbers(experimented, done, call, monkeypatch):
    whole = json.loads((experimented / "runs" / "tiny" / "experiment" / "transfer.json").read_text())
    real, calls = module.evaluate_losses, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:  # the second look
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, "evaluate_losses", interrupted)
    again = ("experiment", "transfer", "runs/tiny", *FLAGS)
    assert call(*again)[0] == 130
    assert (done / "experiment" / "look-1.json").exists() and not (done / "experiment" / "look-2.json").exists()
    assert call(*again)[0] == 0
    found = json.loads((done / "experiment" / "transfer.json").read_text())
    for part in ("zero_shot", "groups", "looks", "sources"):
        assert found[part] == whole[part]
    assert [row["scores"] for row in found["budgets"][:4]] == [row["scores"] for row in whole["budgets"][:4]]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--train.no-baseline",), "set train.baseline = true"),
        (("--train.warm-start.source", "runs/tiny"), "leave out train.warm_start.source"),
        (("--experiment.looks", "9"), "lower experiment.looks"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused(done, call, flags, words):
    code, _, err = call("experiment", "transfer", "tiny.toml", "--out", "runs/new", *flags)
    assert code == 2 and words in err
    assert not (done.parent / "new").exists()


def test_there_is_one_experiment(refused):
    assert "one experiment, transfer" in refused("experiment", "grouping", "tiny.toml")
