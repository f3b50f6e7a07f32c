"""Numbers of all latents in as few characters as a script can hold: columns of a type, as base64."""

from __future__ import annotations

import base64

import numpy as np

_NAMES = {"uint8": "u1", "uint16": "u2", "uint32": "u4", "float32": "f4"}


def column(array: np.ndarray) -> dict[str, str]:
    """An array, flattened, as its type and its bytes, the lowest first."""
    flat = np.ascontiguousarray(array).reshape(-1)
    flat = flat.astype(flat.dtype.newbyteorder("<"))
    return {"type": _NAMES[flat.dtype.name], "data": base64.b64encode(flat.tobytes()).decode()}


def shares(array: np.ndarray) -> dict[str, str]:
    """Numbers from 0 to 1 in steps of 1/254; NaN is 255."""
    known = np.nan_to_num(np.clip(array, 0, 1))
    return column(np.where(np.isnan(array), 255, np.round(known * 254)).astype(np.uint8))


def ids(array: np.ndarray) -> dict[str, str]:
    """Numbers of tokens or latents, plus one; none (-1) is 0."""
    shifted = array.astype(np.int64) + 1
    return column(shifted.astype(np.uint16 if shifted.max(initial=0) < 2**16 else np.uint32))
