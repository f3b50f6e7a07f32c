"""Ctrl-C, SIGTERM and SIGUSR1 save and say how to go on; a second one ends at once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from children import results, spawn, untrained, wait

from groupsae.errors import Interrupted
from groupsae.interrupt import noted, terminable
from groupsae.training.group_trainer import GroupTrainer

FLAGS = ("--num-tokens", 1024, "--save-every-tokens", 100_000, "--log-every-tokens", 128)


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """Makes the sixth training step take long enough for a signal; gives the file that says that it has come."""
    reached, step = tmp_path / "reached", GroupTrainer.step

    def slow(self, x_ND, layers_N, progress, number):
        step(self, x_ND, layers_N, progress, number)
        if number == 5 and not reached.exists():
            reached.touch()
            time.sleep(0.2)

    monkeypatch.setattr(GroupTrainer, "step", slow)
    return reached


def wait_for(path: Path) -> None:
    began = time.monotonic()
    while not path.exists():
        assert time.monotonic() - began < 60
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The results of a training that nobody interrupted."""
    folder = untrained(place, tmp_path_factory.mktemp("whole") / "run")
    assert wait(spawn("train", folder, *FLAGS)) == 0
    return results(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_gives_what_was_to_come(place, tmp_path, whole, waiting, number, code):
    folder, err = untrained(place, tmp_path / "run"), tmp_path / "err"
    pid = spawn("train", folder, *FLAGS, err=err)
    wait_for(waiting)
    os.kill(pid, number)
    assert wait(pid) == code
    message = err.read_text()
    assert "Once more ends at once" in message and "Traceback" not in message
    assert "Stopped after step 6, at 3" in message.splitlines()[-1]
    assert message.splitlines()[-1].endswith(f"`groupsae run {folder}`.")
    assert [path.name for path in folder.glob("checkpoints/*")] == ["step-6.json"]
    assert wait(spawn("train", folder, *FLAGS, err=err)) == 0
    assert "going on from step 6" in err.read_text()
    found = results(folder)
    for name in found.keys() - whole.keys():
        assert "step-6.json" in name or "state-6.safetensors" in name  # the checkpoint of the interruption
    assert {name: found[name] for name in whole} == whole


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_at_once_and_saves_nothing(place, tmp_path, waiting, number, code):
    folder = untrained(place, tmp_path / "run")
    pid = spawn("train", folder, *FLAGS)
    wait_for(waiting)
    os.kill(pid, number)
    time.sleep(0.02)
    os.kill(pid, number)
    assert wait(pid) == code
    assert not list(folder.glob("checkpoints/*"))
    assert not list(folder.rglob(".*"))


def test_the_first_signal_is_noted_and_raised_after_the_block(capfd):
    with pytest.raises(Interrupted) as raised, noted("finishing.") as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == signal.SIGTERM
    assert raised.value.signal == signal.SIGTERM
    assert "SIGTERM: finishing. Once more ends at once." in capfd.readouterr().err


def test_repeats_of_a_notice_are_one_signal_for_a_while():
    with pytest.raises(Interrupted), noted("finishing.", repeats=60) as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt), noted("finishing.", repeats=60):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("Ctrl-C acts at once")


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with noted("finishing."), terminable():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_last_step_ends_the_command_after_the_training_is_whole(done, call, monkeypatch):
    step = GroupTrainer.step

    def interrupted(self, x_ND, layers_N, progress, number):
        step(self, x_ND, layers_N, progress, number)
        if number == 8 and len(self.group) > 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(GroupTrainer, "step", interrupted)
    code, _, err = call("train", done, "--sae.k", "3", "--overwrite")
    assert code == 130 and "goes on from there" in err
    monkeypatch.undo()
    code, _, err = call("train", done, "--sae.k", "3", "--overwrite")
    assert code == 0 and "going on from step 9 (512 tokens)" in err
    assert json.loads((done / "train.json").read_text())["k"] == 3
