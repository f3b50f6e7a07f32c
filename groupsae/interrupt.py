"""Ctrl-C, SIGTERM and SIGUSR1: the first is noted, so that work can end in good order; the second ends it at once.

Schedulers of clusters send SIGUSR1 some time before they take a machine away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from groupsae.errors import Interrupted

NOTICES = (signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
SIGNALS = (signal.SIGINT, *NOTICES)
STDERR = 2


@contextlib.contextmanager
def noted(then: str, *, repeats: float = 0.0) -> Iterator[Callable[[], int]]:
    """While the block runs, the first signal is only noted; yields what gives its number, or 0.

    `then` tells the person who waits what happens now. A second signal acts as it did before; but for so many seconds
    `repeats` of SIGTERM and SIGUSR1 are one signal, which a scheduler and torchrun both send. Raises Interrupted after
    a block that ended without looking.
    """
    received, since = 0, 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal received, since
        if received:
            if number not in NOTICES or time.monotonic() - since > repeats:
                _restore(before)
                signal.raise_signal(number)
            return
        received, since = number, time.monotonic()
        if not repeats:
            _restore(before)
        # Not by print: the signal may have come in the middle of one.
        os.write(STDERR, f"\n{signal.Signals(number).name}: {then} Once more ends at once.\n".encode())

    before = _install(note)
    try:
        yield lambda: received
    finally:
        _restore(before)
    if received:
        raise Interrupted(received)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGUSR1 raise Interrupted, so that temporary files are removed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = _install(end, NOTICES)
    try:
        yield
    finally:
        _restore(before)


Handlers = dict[int, object]


def _install(handler: Callable[[int, FrameType | None], None], signals: tuple[int, ...] = SIGNALS) -> Handlers:
    """The handlers that were in force; none where Python lets nobody set them, outside the main thread.

    A signal that is ignored, as by `nohup` or in the background, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _restore(before: Handlers) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
