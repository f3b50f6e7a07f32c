"""The transfer experiment, on a tiny model."""

from __future__ import annotations

import json
import shutil

import pytest
import transfer
from transfer_costs import Spending
from transfer_results import DIRECTIONS

from groupsae import Partition, RunContext, RunDirectory
from groupsae.lock import hold
from groupsae.records.types.partition import PartitionRecord
from groupsae.records.types.training import TrainRecord

LAYERS = [f"layers.{layer}" for layer in range(3)]
FLAGS = ("--looks", "2")


@pytest.fixture(scope="module")
def experimented(place, tmp_path_factory):
    """A folder with runs/tiny and its transfer experiment. Only to be copied."""
    folder = tmp_path_factory.mktemp("experiment")
    shutil.copytree(place / "runs", folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert transfer.main(["runs/tiny", *FLAGS]) == 0
    return folder


@pytest.fixture
def run_it(capsys):
    """Runs the experiment's command; gives its exit code, and what it printed on stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = transfer.main(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def experiment(experimented, here, run_it):
    """Runs the experiment on a copy of a run that has it."""
    shutil.copytree(experimented / "runs", here / "runs")
    return lambda *flags: run_it("runs/tiny", *FLAGS, *flags)


def test_the_experiment_gives_looks_controls_matrix_and_budgets(here, experiment):
    code, out, err = experiment("--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["num_tokens"] == {"base": 512, "transfer": 256, "eval": 64}
    first, last = (look["tokens"] for look in record["looks"])
    assert 128 <= first < 128 + 64 and last == 256  # the first step at or beyond 128 tokens; steps of at most 64
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
def test_an_interrupted_experiment_goes_on_to_the_same_numbers(experimented, done, run_it, monkeypatch):
    whole = json.loads((experimented / "runs" / "tiny" / "experiment" / "transfer.json").read_text())
    real, calls = transfer.evaluate_losses, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:  # the second look
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(transfer, "evaluate_losses", interrupted)
    again = ("runs/tiny", *FLAGS)
    assert run_it(*again)[0] == 130
    assert (done / "experiment" / "look-1.json").exists() and not (done / "experiment" / "look-2.json").exists()
    assert run_it(*again)[0] == 0
    found = json.loads((done / "experiment" / "transfer.json").read_text())
    for part in ("zero_shot", "groups", "looks", "sources"):
        assert found[part] == whole[part]
    assert [row["scores"] for row in found["budgets"][:4]] == [row["scores"] for row in whole["budgets"][:4]]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--train.no-baseline",), "set train.baseline = true"),
        (("--train.warm-start.source", "runs/tiny"), "leave out train.warm_start.source"),
        (("--looks", "9"), "lower --looks"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused(done, run_it, flags, words):
    code, _, err = run_it("tiny.toml", "--out", "runs/new", *flags)
    assert code == 2 and words in err
    assert not (done.parent / "new").exists()


def test_an_experiment_on_a_run_that_is_in_use_is_refused(done, run_it):
    with hold(done):
        code, _, err = run_it("runs/tiny", *FLAGS)
    assert code == 2 and "is in use by process" in err and "Traceback" not in err
    assert not (done / "experiment").exists()


def test_no_file_can_ask_an_experiment_to_run_code_of_a_model(done, run_it):
    text = (done / "config.toml").read_text().replace("trust_remote_code = false\n", "")
    (done / "config.toml").write_text(text.replace("[model]", "[model]\ntrust_remote_code = true"))
    code, out, err = run_it("runs/tiny", *FLAGS)
    assert code == 2 and "--trust-remote-code" in err and out == ""


def test_the_stages_up_to_train_are_done_first(here, run_it):
    code, out, err = run_it("tiny.toml", "--looks", "1", "--num-tokens", "64", "--eval.num-tokens", "32", "--json")
    assert code == 0, err
    assert json.loads(out)["num_tokens"] == {"base": 512, "transfer": 64, "eval": 32}
    assert (here / "runs/tiny/train.json").exists() and not (here / "runs/tiny/eval").exists()


def test_seconds_are_those_of_the_suites_in_every_other_table(done):
    ctx, record = RunContext(RunDirectory.open(done)), TrainRecord.read(RunDirectory.open(done))
    groups = PartitionRecord.read(ctx.run).choice.partition
    spending = Spending(ctx, groups, 64, {})
    assert spending.base()[1] == record.seconds_of(Partition.singletons(groups.hookpoints))
    assert spending.groups()[1] == record.seconds_of(groups)
    assert record.seconds_of(groups) > record.seconds["shuffle buffer"] + record.seconds["checkpoints"]
