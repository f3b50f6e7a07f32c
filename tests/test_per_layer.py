"""`group.per_layer` from the command line: trained, interrupted, evaluated, and started from."""

from __future__ import annotations

import pytest

from groupsae.saes.suite import Suite
from groupsae.training.group_trainer import GroupTrainer


@pytest.fixture
def config(here):
    """Writes a config whose layers have these parts of their own; gives its name."""

    def write(*parts):
        settings = (here / "tiny.toml").read_text().replace("[group]", f"[group]\nper_layer = {list(parts)}")
        (here / "own.toml").write_text(settings)
        return "own.toml"

    return write


@pytest.fixture
def trained(here, config, call):
    """Trains SAEs whose layers have a bias and a rotation of their own; gives the run's folder."""

    def run(name, code=0):
        for verb in ("tokens", "distances", "group", "train"):
            found, _, err = call(verb, config("bias", "rotation"), "--out", f"runs/{name}")
            assert found == (code if verb == "train" else 0), err
        return here / "runs" / name

    return run


def weights_of(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in run.glob("groups/*/[sl]*.safetensors")}


def test_an_interrupted_training_goes_on_to_the_same_biases(trained, call, monkeypatch):
    whole, step = trained("whole"), GroupTrainer.step

    def interrupted(self, x_ND, layers_N, progress, number):
        if number == 5:
            raise KeyboardInterrupt
        step(self, x_ND, layers_N, progress, number)

    with monkeypatch.context() as patch:
        patch.setattr(GroupTrainer, "step", interrupted)
        halves = trained("halves", code=130)
    code, _, err = call("train", halves)
    assert code == 0 and "going on from step" in err, err
    assert weights_of(halves) == weights_of(whole)
    assert Suite.load(halves)["layers.1"].maps.bias_MS.any()


def test_layers_start_from_their_group_with_their_own_bias_in_their_sae(trained, call):
    run = trained("biased")
    code, _, err = call("eval", run)
    assert code == 0, err
    code, _, err = call("transfer", run, "--from", run, "--direction", "group", "--num-tokens", 64)
    assert code == 0, err
    shared = max(Suite.load(run).partition.groups, key=len)
    specialized = Suite.load(run.parent / "biased-group")
    assert len({specialized[name].sae.b_enc.sum().item() for name in shared}) == len(shared)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["biases"], "Did you mean 'bias'?"),
        (["bias:2"], "Did you mean 'bias'?"),
        (["rotations"], "Did you mean 'rotation'?"),
        (["none", "bias"], "'none' stands alone"),
    ],
)
def test_what_is_no_part_is_answered_with_what_may_be_meant(config, call, parts, words):
    code, _, err = call("train", config(*parts))
    assert code == 2 and words in " ".join(err.split()), err
