"""What counts as out of memory, and what is done about it."""

import pytest
import torch

from groupsae.errors import FitError
from groupsae.oom import SplitOnOOM, is_out_of_memory


def parts():
    return SplitOnOOM("a heap", "a grain", "Buy a bag.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_errors_made_for_it_count_as_out_of_memory(error):
    assert is_out_of_memory(error)


def test_what_pytorch_really_raises_on_a_cpu_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_other_errors_do_not_and_are_not_swallowed(error):
    assert not is_out_of_memory(error)
    undone = []

    def broken(number):
        raise error

    with pytest.raises(type(error), match=str(error)):
        parts().run(broken, lambda: undone.append(1), 8)
    assert not undone


def test_work_is_undone_and_repeated_in_twice_as_many_parts_which_stay(capsys):
    tried, undone, work = [], [], parts()

    def fits_in_four(number):
        tried.append(number)
        if number < 4:
            raise MemoryError
        return number

    assert work.run(fits_in_four, lambda: undone.append(1), 8) == 4
    assert work.run(fits_in_four, lambda: undone.append(1), 8) == 4
    assert (tried, len(undone)) == ([1, 2, 4, 4], 2)
    assert capsys.readouterr().err == "memory does not hold a heap whole; it is taken in parts from now on\n"


def test_a_small_piece_is_not_taken_in_more_parts_than_it_has():
    work = parts()
    work.splits = 8
    assert work.run(lambda number: number, lambda: None, 3) == 3


def test_what_does_not_fit_in_any_number_of_parts_is_an_error_that_says_what_helps():
    def never(number):
        raise MemoryError("no room")

    with pytest.raises(FitError, match=r"Memory does not hold a grain: no room\. Buy a bag\."):
        parts().run(never, lambda: None, 5)
