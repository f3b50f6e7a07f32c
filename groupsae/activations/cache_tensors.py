"""The tensors of one shard of an activation cache, computed from a source."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from groupsae.activations.cache_format import CacheManifest
from groupsae.activations.source import PositionSource
from groupsae.errors import NumericalError

_TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
"""The types of a shard's tensors, by how the header spells them."""


def read_shard(
    source: PositionSource, rows: Tensor, manifest: CacheManifest, progress: Callable[[int], None]
) -> dict[str, Tensor]:
    """The tensors of a shard with these rows, read a batch at a time; `progress` is told the bytes of each.

    Raises NumericalError for activations that are not finite, or not in the cache's dtype.
    """
    form = manifest.tensors(len(rows))
    tensors = {name: torch.empty(shape, dtype=_TORCH[dtype]) for name, (dtype, shape) in form.items()}
    tensors["documents"] = source.documents(rows.tolist())
    start = 0
    for batch in rows.split(source.batch_rows):
        place = slice(start, start := start + len(batch))
        x_LBTD, left_out_BT = _read_positions(source, batch)
        tokens_BT, special_BT = _tokens(source, batch, left_out_BT, x_LBTD)
        _put(tensors, place, x_LBTD.cpu(), batch, manifest)
        tensors["tokens"][place], tensors["special"][place], tensors["rows"][place] = tokens_BT, special_BT, batch
        tensors["left_out"][place] = left_out_BT & ~special_BT
        progress(manifest.data_bytes(len(batch)))
    return tensors


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 numbers q and float32 scales s, one per vector of the last dimension: x is about s q.

    s = max |x| / 127 and q = round(x / s), halves to the even number; a vector of zeros has s = 0 and q = 0.
    So |x - s q| is at most s / 2, up to rounding.
    """
    x = x.float()
    scales = x.abs().amax(-1) / 127
    safe = torch.where(scales > 0, scales, torch.ones_like(scales))
    return (x / safe[..., None]).round().clamp(-127, 127).to(torch.int8), scales


def _put(tensors: dict[str, Tensor], place: slice, x_LBTD: Tensor, rows: Tensor, manifest: CacheManifest) -> None:
    """Keep the activations of a batch in the cache's dtype."""
    kept, checked = tensors["activations"], tensors["scales" if manifest.dtype == "int8" else "activations"]
    if manifest.dtype == "int8":
        kept[:, place], checked[:, place] = quantized(x_LBTD)
    else:
        kept[:, place] = x_LBTD.to(kept.dtype)
    found = not_finite(checked[:, place])
    if found:
        layer, row = found
        raise NumericalError(
            f"Activations at {manifest.hookpoints[layer]} in row {int(rows[row])} are not finite, or too large for "
            f"{manifest.dtype}. Use dtype 'bfloat16' or 'float32'."
        )


def not_finite(x: Tensor) -> tuple[int, int] | None:
    """The first layer and row of x (L, B, ...) that hold NaN or infinity; None where all is finite."""
    if not x.numel() or all(map(torch.isfinite, x.aminmax())):  # far faster than isfinite of all
        return None
    layer, row = torch.isfinite(x).flatten(2).all(2).logical_not().nonzero()[0].tolist()
    return layer, row


def _read_positions(source: PositionSource, rows: Tensor) -> tuple[Tensor, Tensor]:
    """x_LBTD, and the positions that are special or left out."""
    masked = source.num_masked
    x_LBTD, left_out_BT = source.read_positions(rows.tolist())
    left_out_BT = left_out_BT.cpu()
    if source.num_masked > masked and not source.skip_special:
        located = left_out_BT & ~_tokens(source, rows, left_out_BT, x_LBTD)[1]
        if source.num_masked - masked > int(located.sum()):
            raise NumericalError(
                f"Special tokens in rows {int(rows[0])} to {int(rows[-1])} have activations with NaN or infinity, and "
                "skip_special is off. Harvest with skip_special on, or give model.dtype = 'float32' or 'bfloat16'."
            )
    return x_LBTD, left_out_BT


def _tokens(source: PositionSource, rows: Tensor, left_out_BT: Tensor, x_LBTD: Tensor) -> tuple[Tensor, Tensor]:
    """The token ids, and where they are special or outliers; a source without token ids has zeros."""
    text = getattr(source, "rows", None)
    if text is None:
        return torch.zeros(left_out_BT.shape, dtype=torch.int32), left_out_BT
    ids_BT = text[rows.tolist()]
    if hasattr(source, "left_out"):
        return ids_BT.to(torch.int32), source.left_out(ids_BT.to(x_LBTD.device), x_LBTD).cpu()
    return ids_BT.to(torch.int32), ~text.keep(ids_BT)
