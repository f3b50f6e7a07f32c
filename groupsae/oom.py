"""Work taken in parts when memory does not hold it whole, on a device or on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from groupsae.errors import FitError
from groupsae.progress import say

Result = TypeVar("Result")

SHORTAGES = ("can't allocate memory", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
"""What PyTorch says in a RuntimeError where memory ran out: on a CPU, in C++, in a library of the device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SHORTAGES)


class SplitOnOOM:
    """How many parts a kind of work is taken in: one, until memory runs out, then twice as many from then on.

    The first time is said on stderr. `what` names the work, `least` its smallest part, `remedy` what helps if even
    that is too large.
    """

    def __init__(self, what: str, least: str, remedy: str) -> None:
        self.what, self.least, self.remedy = what, least, remedy
        self.number = 1

    def run(self, work: Callable[[int], Result], undo: Callable[[], None], most: int) -> Result:
        """What `work(parts)` gives. Out of memory, it is undone and repeated with twice the parts.

        Raises FitError if even `most` parts are too few.
        """
        while True:
            try:
                return work(min(self.number, most))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                undo()
                if self.number >= most:
                    raise FitError(f"Memory does not hold {self.least}: {error}. {self.remedy}") from error
            self._double()

    def _double(self) -> None:
        if self.number == 1:
            say(f"memory does not hold {self.what} whole; it is taken in parts from now on")
        self.number *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def free_memory() -> int | None:
    """Free bytes of main memory; None where that cannot be told."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
