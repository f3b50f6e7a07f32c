"""Positions left out because their activations are no numbers: counted alike however often a run is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from children import results
from safetensors.torch import load_file, save_file

from groupsae import cli
from groupsae.training.group_trainer import GroupTrainer

TRAIN = ("train", "runs/tiny", "--num-tokens", "1024", "--save-every-tokens", "200", "--log-every-tokens", "128")


@pytest.fixture(scope="module")
def faulty(place, tmp_path_factory):
    """A folder with tiny.toml and runs/tiny up to its groups, of a model that a digit is too much for."""
    folder = tmp_path_factory.mktemp("faulty")
    shutil.copytree(place / "model", folder / "model")
    weights = load_file(folder / "model/model.safetensors")
    (embedding,) = (tensor for name, tensor in weights.items() if "embed_in" in name)
    embedding[json.loads((folder / "model/tokenizer.json").read_text())["model"]["vocab"]["7"]] = 3e38  # overflows
    save_file(weights, folder / "model/model.safetensors", {"format": "pt"})
    settings = (place / "tiny.toml").read_text().replace(str(place / "model"), str(folder / "model"))
    (folder / "tiny.toml").write_text(settings.replace("[activations]", '[activations]\non_nan = "mask"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert [cli.main([verb, "tiny.toml"]) for verb in ("tokens", "distances", "group")] == [0, 0, 0]
    return folder


@pytest.fixture
def train(faulty, tmp_path, monkeypatch, call):
    """Trains in a copy of the faulty folder of this name, and gives the exit code."""

    def run(name):
        if not (tmp_path / name).exists():
            shutil.copytree(faulty, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        return call(*TRAIN)[0]

    return run


@pytest.mark.parametrize("how", ["saved", "lost"])
def test_a_run_that_was_stopped_counts_what_one_that_was_not_counts(train, tmp_path, monkeypatch, how):
    """A signal ends the sixth step and is saved; or the process ends, and its work since the last save is lost."""
    assert train("whole") == 0
    step, stops = GroupTrainer.step, [5, 11]

    def stopped(self, x_ND, layers_N, progress, number):
        step(self, x_ND, layers_N, progress, number)
        if stops and number == stops[0] and len(self.group) > 1:
            del stops[0]
            if how == "lost":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(GroupTrainer, "step", stopped)
    assert [train("again"), train("again"), train("again")] == [130, 130, 0]
    whole, again = (results(tmp_path / name / "runs/tiny") for name in ("whole", "again"))
    assert again["train.json"] == whole["train.json"]
    assert whole["train.json"]["masked_positions"] > 20
    assert again["metrics.jsonl"] == whole["metrics.jsonl"]


def test_such_a_run_can_be_evaluated(train, tmp_path, call):
    assert train("evaluated") == 0
    code, _, err = call("eval", "runs/tiny", "reconstruction", "losses", "similarity")
    assert code == 0, err
    record = json.loads((tmp_path / "evaluated/runs/tiny/eval/reconstruction.json").read_text())
    assert all(0 < layer["fvu"] < 10 for suite in record["suites"].values() for layer in suite.values())
