"""Commands under torchrun: the same files as by one process, one voice, and an end for all when one fails."""

import pytest
from children import results, untrained
from rank_processes import run_commands


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
    assert told[1] == "" and "train" in told[0]
    assert results(fresh) == trained
