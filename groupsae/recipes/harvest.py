"""The harvest: a run's activations are read from the language model once, and kept in a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groupsae.activations.cache_format import CacheManifest, Dtype
from groupsae.activations.cache_writer import write_cache
from groupsae.errors import ConfigError
from groupsae.planning.cache import cache_bytes
from groupsae.progress import bar, say
from groupsae.recipes.context import RunContext
from groupsae.recipes.run import alone, do_stage
from groupsae.recipes.run_cache import identity
from groupsae.records import RunDirectory
from groupsae.units import format_bytes

ROW_BYTES = 16
"""Bytes per row of a cache beside its positions: the numbers of the row and of its document."""


def harvest(
    run: RunDirectory,
    folder: Path | None = None,
    *,
    num_tokens: int | None = None,
    held_out_tokens: int | None = None,
    dtype: Dtype = "bfloat16",
) -> dict[str, Any]:
    """Write a run's activations into a cache: all rows of text, or so many tokens of them.

    The folder is `folder`, or the config's `activations.cache`, or `activations/` in the run directory. The tokens
    stage is done first where it is missing. A harvest that was cut off goes on after its last whole shard. Raises as
    `write_cache` does. Returns what was written, as values that JSON can hold.
    """
    target = folder or Path(run.config.activations.cache or run.file("activations"))
    ctx = RunContext(run, from_model=True)
    if run.status("tokens") != "done":
        do_stage(ctx, "tokens")
    if not ctx.rows.held_out.ids_RT.size:
        raise ConfigError("There is no held-out text, so SAEs could not be evaluated; raise text.held_out_share.")
    facts = _facts(ctx)
    total = _bytes(ctx, dtype, num_tokens, held_out_tokens)
    say(f"harvest: {len(ctx.hookpoints)} hookpoints in {dtype}, {format_bytes(total)} into {target}")
    with alone(run), bar("harvest", total, "bytes") as advance:
        manifest = write_cache(
            ctx.source,
            target,
            facts=facts,
            held_out=ctx.source.held_out(),
            num_tokens=num_tokens,
            held_out_tokens=held_out_tokens,
            dtype=dtype,
            seed=run.config.seed,
            progress=advance,
        )
    return _described(manifest, target)


def _facts(ctx: RunContext) -> dict[str, Any]:
    """What the cache is computed from, and what was measured of positions that are left out."""
    model, settings = ctx.run.config.model, ctx.run.config.activations
    return {
        **identity(ctx),
        "model": model.name,
        "revision": model.revision,
        "gguf": getattr(ctx.model.config, "gguf", None),
        "positions": ctx.source.position_facts.to_json() if settings.skip_special else None,
    }


def _bytes(ctx: RunContext, dtype: Dtype, *num_tokens: int | None) -> int:
    """Bytes of the rows on both sides, each cut to so many tokens."""
    length = ctx.rows.context_length
    sides = zip((ctx.rows, ctx.rows.held_out), num_tokens, strict=True)
    rows = sum(len(side) if tokens is None else min(len(side), -(-tokens // length)) for side, tokens in sides)
    return cache_bytes(len(ctx.hookpoints), rows * length, ctx.width, dtype) + rows * ROW_BYTES


def _described(manifest: CacheManifest, folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "hookpoints": list(manifest.hookpoints),
        "dtype": manifest.dtype,
        "tokens": {split: rows * manifest.row_tokens for split, rows in manifest.rows.items()},
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
    }
