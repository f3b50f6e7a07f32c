"""Progress on stderr: bars with rates and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

PLAIN_EVERY_SECONDS = 10.0


def say(message: str) -> None:
    """One line for the person who watches."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(label: str, total: int | None, unit: str = "tokens") -> Iterator[Callable[[int], None]]:
    """Shows progress while the block runs; yields the function to call with the amount newly done."""
    with (_rich_bar if sys.stderr.isatty() else _plain_lines)(label, total, unit) as advance:
        yield advance


@contextlib.contextmanager
def _rich_bar(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description:<19}"),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),  # takes what the others leave
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as progress:
        task = progress.add_task(label, total=total, rate="")
        began, done = time.monotonic(), 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            rate = done / max(time.monotonic() - began, 1e-9)
            progress.update(task, completed=done, rate=f"{rate:,.0f} {unit}/s")

        yield advance
        progress.update(task, total=done)


@contextlib.contextmanager
def _plain_lines(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    began = last = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_SECONDS:
            last = now
            say(f"{label}: {_state(done, total, unit, now - began)}")

    yield advance
    say(f"{label}: {done:,} {unit} in {time.monotonic() - began:.1f} s")


def _state(done: int, total: int | None, unit: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    if not total:
        return f"{done:,} {unit}, {rate:,.0f}/s"
    left = max(0.0, (total - done) / max(rate, 1e-9))
    return f"{done:,} of {total:,} {unit} ({done / total:.0%}), {rate:,.0f}/s, {left:.0f} s left"
