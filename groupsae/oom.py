"""Work that is split into parts when memory does not hold it whole, on a device or on a CPU."""

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
    """Splits a kind of work into `splits` parts: one, until memory runs out, then twice as many from then on.

    The first split is announced on stderr. `what` names the work, `least` its smallest part, `remedy` what helps if
    even that is too large.
    """

    def __init__(self, what: str, least: str, remedy: str) -> None:
        self.what, self.least, self.remedy = what, least, remedy
        self.splits = 1

    def run(self, work: Callable[[int], Result], undo: Callable[[], None], most: int) -> Result:
        """Run `work(n)`; on out-of-memory, undo it and retry with twice as many splits.

        Raises FitError if even `most` parts are too few.
        """
        while True:
            try:
                return work(min(self.splits, most))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                undo()
                if self.splits >= most:
                    raise FitError(f"Memory does not hold {self.least}: {error}. {self.remedy}") from error
            self._double()

    def _double(self) -> None:
        if self.splits == 1:
            say(f"memory does not hold {self.what} whole; it is taken in parts from now on")
        self.splits *= 2
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
