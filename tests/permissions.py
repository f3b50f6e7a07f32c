"""Permissions that bind the tests even where they run as root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import pytest

VERSION_3, THIS_THREAD = 0x20080522, 0
"""Header of capget(2) and capset(2)."""


@contextlib.contextmanager
def binding() -> Iterator[None]:
    """While the block runs, root has no more rights than the owner of a file: its capabilities lie idle."""
    if os.name != "posix" or (os.geteuid() == 0 and sys.platform != "linux"):
        pytest.skip("permissions do not bind this user")
    if os.geteuid() != 0:
        yield
        return
    libc, header, before = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(VERSION_3, THIS_THREAD), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    effective = {0, 3}  # of two times: effective, permitted, inheritable
    idle = (ctypes.c_uint32 * 6)(*(0 if place in effective else value for place, value in enumerate(before)))
    assert libc.capset(header, idle) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
