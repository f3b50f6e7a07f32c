"""Bytes and durations as text."""

from __future__ import annotations


def format_bytes(n: float | None) -> str:
    """Bytes in the largest binary unit that fits, with one decimal from GiB on; `-` for None."""
    if n is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB" if n < 10 * 1024 else f"{n / 1024:.1f} TiB"


def format_duration(s: float | None) -> str:
    """Seconds as `90 s`, `45 min` or `2.5 h`; `-` for None."""
    if s is None:
        return "-"
    if s < 120:
        return f"{s:.0f} s"
    return f"{s / 60:.0f} min" if s < 7200 else f"{s / 3600:.1f} h"
