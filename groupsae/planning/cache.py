"""What an activation cache occupies, and from how many trainings on it saves time."""

from __future__ import annotations

import math

from groupsae.activations.cache_format import BYTES, POSITION_BYTES, SCALE_BYTES
from groupsae.errors import ConfigError, unknown


def cache_bytes(num_layers: int, num_tokens: int, d_model: int, dtype: str = "bfloat16") -> int:
    """Bytes on disk of the activations of `num_tokens` positions at `num_layers` hookpoints.

        N (L (D b + s) + 6)     b bytes a number; s = 4 for int8, which has a scale per layer and token, else 0

    The 6 bytes are the token and the masks. Headers and the manifest, some kilobytes per shard, are left
    out. Raises ConfigError for another dtype.
    """
    if dtype not in BYTES:
        raise ConfigError(unknown("dtype of a cache", dtype, BYTES))
    scale = SCALE_BYTES if dtype == "int8" else 0
    return num_tokens * (num_layers * (d_model * BYTES[dtype] + scale) + POSITION_BYTES)


def trainings_until_cache_pays(
    *,
    model_seconds_per_token: float,
    write_seconds_per_token: float,
    read_seconds_per_token: float,
    cached_tokens: float,
    tokens_per_training: float | None = None,
) -> int | None:
    """The fewest trainings with which a cache costs no more seconds than the language model would; None if never.

        n = ceil(N_cached (t_model + t_write) / (N_training (t_model - t_read)))

    The cache is filled once: the model reads every cached token, and it is written. Each training then reads
    its tokens (by default as many as are cached) from the cache instead of through the model.
    """
    tokens = cached_tokens if tokens_per_training is None else tokens_per_training
    saved = tokens * (model_seconds_per_token - read_seconds_per_token)
    if saved <= 0:
        return None
    return max(1, math.ceil(cached_tokens * (model_seconds_per_token + write_seconds_per_token) / saved))
