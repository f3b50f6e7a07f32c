"""A training in parts, put together, is that of one process."""

import json
import shutil

import pytest
from children import results, untrained, without_seconds

from groupsae.errors import ConfigError
from groupsae.recipes.parts import Part


@pytest.fixture
def fresh(place, here):
    """The tiny run before training."""
    return untrained(place, here / "run")


def test_three_parts_merged_are_the_training_of_one_process(fresh, done, call, capsys):
    for number in (1, 3, 2):
        assert call("train", fresh, "--part", f"{number}/3")[0] == 0
    assert call("train", fresh, "--part", "2/3")[2].endswith("part 2/3: done already\n")
    code, _, err = call("merge", fresh)
    assert code == 0, err
    assert alike(fresh) == alike(done)
    code, _, err = call("run", fresh)
    assert code == 0, err
    assert call("show", fresh, "--verify")[0] == 0
    assert without_seconds(read(fresh, "eval/losses.json")) == without_seconds(read(done, "eval/losses.json"))


def test_parts_in_copies_of_the_run_are_merged_into_one(fresh, here, done, call):
    copies = [fresh, here / "copy"]
    shutil.copytree(fresh, copies[1])
    for number, folder in enumerate(copies, 1):
        assert call("train", folder, "--part", f"{number}/2")[0] == 0
    code, _, err = call("merge", fresh)
    assert code == 2 and "lacks part 2 of 2" in err and "--part 2/2" in err
    assert call("merge", fresh, copies[1])[0] == 0
    assert alike(fresh) == alike(done)


def test_a_part_that_was_stopped_goes_on(fresh, done, call):
    call("train", fresh, "--part", "1/2")
    (fresh / "parts/1-of-2/train.json").unlink()
    code, _, err = call("train", fresh, "--part", "1/2")
    assert code == 0 and "going on from step" in err
    assert call("train", fresh, "--part", "2/2")[0] == 0 == call("merge", fresh)[0]
    assert alike(fresh) == alike(done)


def test_parts_of_another_config_are_refused(fresh, call):
    for number in (1, 2):
        assert call("train", fresh, "--part", f"{number}/2")[0] == 0
    assert call("train", fresh, "--part", "1/2", "--learning-rate", "0.5")[0] == 0
    code, _, err = call("merge", fresh)
    assert code == 2 and "2-of-2 is of another training" in err


def test_more_parts_than_saes_are_refused(fresh, call):
    code, _, err = call("train", fresh, "--part", "1/99")
    assert code == 2 and "only" in err and "99" in err


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "a/b", "1/", "-1/3"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(ConfigError, match="such as 3/16"):
        Part.of(text)


def alike(folder):
    """What training left that does not tell how it went on: weights, metrics, facts."""
    found = results(folder)
    return {name: value for name, value in found.items() if "state-" not in name and not name.startswith("step-")}


def read(folder, name):
    return json.loads((folder / name).read_text())
