"""The activation cache of a run: what it must have been computed from, and where it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from groupsae.activations.cache import CachedActivations
from groupsae.activations.cache_format import MANIFEST, CacheManifest, read_manifest
from groupsae.activations.cache_writer import text_digest
from groupsae.config import RunConfig
from groupsae.errors import ConfigError
from groupsae.models import pick_device, weights_digest

if TYPE_CHECKING:
    from groupsae.recipes.context import RunContext


def open_cache(ctx: RunContext) -> CachedActivations:
    """The cache that the config names, at the run's hookpoints.

    Raises ConfigError if there is none, RunError if it is damaged, or was computed from another model or text, or
    with other positions left out.
    """
    settings = ctx.run.config.activations
    read_cache_manifest(ctx.run.config)
    cache = CachedActivations(
        str(settings.cache),
        device=pick_device(ctx.run.config.model.device),
        batch_rows=settings.batch_rows,
        skip_special=settings.skip_special,
    )
    cache.require_cache_of(identity(ctx), ctx.hookpoints)
    return cache.narrowed(ctx.hookpoints)


def read_cache_manifest(config: RunConfig) -> CacheManifest:
    """The manifest of the config's cache. Raises ConfigError, naming the command that writes one, if there is none."""
    folder = Path(str(config.activations.cache))
    if not folder.is_dir():
        raise ConfigError(
            f"activations.cache names {folder}, which is not there. `groupsae harvest` with the same config writes it; "
            "without the key, activations are read from the language model."
        )
    return read_manifest(folder / MANIFEST)


def cache_files(config: RunConfig) -> list[Path]:
    """The file that tells one cache from another, if the config names a cache."""
    return [Path(config.activations.cache) / MANIFEST] if config.activations.cache else []


def identity(ctx: RunContext) -> dict[str, Any]:
    """The facts that a cache must have to serve a run: model, text, and the positions that are left out."""
    model, settings = ctx.run.config.model, ctx.run.config.activations
    digest = weights_digest(model.name, model.gguf_file)
    weights = {"weights": digest} if digest else {"model": model.name, "revision": model.revision}
    rule = {"skip_first": settings.skip_first, "max_norm": settings.max_norm} if settings.skip_special else {}
    precision = {} if ctx.cached and model.dtype == "auto" else {"model_dtype": ctx.dtype}
    return {**weights, **precision, "text": text_digest(ctx.rows), **rule}
