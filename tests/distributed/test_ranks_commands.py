"""Commands under torchrun: the same files as by one process, one voice, and an end for all when one fails."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from children import results, untrained
from rank_processes import run_commands, spawn_commands, wait


@pytest.fixture
def trained(done):
    """What one process left in the finished tiny run."""
    return results(done)


@pytest.fixture
def fresh(place, here):
    """The tiny run before training."""
    return untrained(place, here / "run")


@pytest.fixture
def said(tmp_path):
    """A folder for what ranks say."""
    folder = tmp_path / "said"
    folder.mkdir()
    return folder


def test_two_ranks_leave_the_files_that_one_process_leaves(trained, fresh, said):
    codes, told = run_commands(2, ["train", fresh], said)
    assert codes == [0, 0], told
    assert told[1] == "" and "train: 2 ranks for" in told[0]
    found = results(fresh)
    shares = found["train.json"].pop("ranks")
    assert found == trained
    assert len(shares) == 2 and all(one["training"] > 0 and one["reading"] > 0 for one in shares)
    printed = (said / "out-0").read_text()
    assert "waiting" in printed and (said / "out-1").read_text() == ""


def test_a_whole_run_by_three_ranks_is_that_of_one_process(done, here, said):
    codes, told = run_commands(3, ["run", "tiny.toml", "--out", here / "three"], said)
    assert codes == [0] * 3, told
    found = results(here / "three")
    assert len(found["train.json"].pop("ranks")) == 3
    assert found == results(done)
    compared = [path.relative_to(done) for path in (*done.glob("eval/*.json"), *done.glob("*.json"))]
    assert Path("eval/losses.json") in compared and Path("distances.json") in compared
    for name in compared:
        one, three = (without_times(json.loads((folder / name).read_text())) for folder in (done, here / "three"))
        if name != Path("manifest.json"):
            assert one == three, name
    assert (here / "three/report/index.html").exists()


def without_times(value):
    """JSON without what tells how long something took."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in ("seconds", "ranks")}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def test_a_sweep_is_spread_over_ranks(fresh, here, said, call):
    shutil.copytree(fresh, here / "one")
    flags = ["--sae.k", "3", "4"]
    assert call("train", here / "one", *flags)[0] == 0
    codes, told = run_commands(3, ["train", fresh, *flags], said)
    assert codes == [0] * 3, told
    one, three = results(here / "one"), results(fresh)
    three["train.json"].pop("ranks")
    assert len(three["train.json"]["saes"]) == 8 and three == one


def test_ranks_of_other_configs_do_not_begin(fresh, said):
    before = (fresh / "config.toml").read_text()
    codes, told = run_commands(2, ["train", fresh], said, only=["--learning-rate", "0.5"])
    assert codes == [2, 2]
    lines = [line for each in told for line in each.splitlines() if "do not agree" in line]
    assert len(lines) == 1 and "config: " in lines[0] and "rank 0 on" in lines[0] and "rank 1 on" in lines[0]
    assert (fresh / "config.toml").read_text() == before and not (fresh / "groups").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_ends_all_with_the_code_that_says_resume(trained, fresh, said, number):
    pids = spawn_commands(2, ["train", fresh, "--save-every-tokens", "64"], said)
    while not list(fresh.glob("checkpoints/*")):
        time.sleep(0.01)
        assert os.waitpid(pids[0], os.WNOHANG) == (0, 0)
    os.kill(pids[1], number)
    codes = [wait(pid) for pid in pids]
    told = [(said / f"err-{rank}").read_text() for rank in range(2)]
    if codes != [0, 0]:  # it came before the end
        assert codes == [128 + number] * 2, told
        assert "Saved. The same command goes on from there" in told[0] and "Saved" not in told[1]
    codes, told = run_commands(3, ["train", fresh, "--save-every-tokens", "256"], said)
    assert codes == [0] * 3 and ("going on from step" in told[0] or "done already" in told[0])
    weights = {
        name: value for name, value in trained.items() if name.endswith(("sae.safetensors", "scales.safetensors"))
    }
    assert len(weights) > 4 and weights.items() <= results(fresh).items()


def test_verbs_of_one_process_say_so(fresh, said):
    codes, told = run_commands(2, ["show", fresh], said)
    assert codes == [2, 2] and "call it without torchrun" in "".join(told)
