import pytest

from groupsae.activations.cache_writer import write_cache
from groupsae.activations.source import SyntheticSource
from groupsae.errors import ConfigError
from groupsae.planning.cache import cache_bytes, trainings_until_cache_pays

SECONDS = {"model_seconds_per_token": 1e-3, "write_seconds_per_token": 2e-4, "read_seconds_per_token": 1e-4}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int8"])
def test_the_predicted_bytes_are_those_written(tmp_path, dtype):
    manifest = write_cache(SyntheticSource(5, 32, 64, 32), tmp_path, facts={}, dtype=dtype, rows_per_shard=32)
    predicted = cache_bytes(5, 64 * 32, 32, dtype)
    written = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert predicted < written < predicted + 2 * 1200
    assert written <= sum(manifest.shard_bytes(shard.rows) for shard in manifest.shards)


def test_a_known_size():
    assert cache_bytes(29, 1_000_000, 576) == 1_000_000 * (29 * 576 * 2 + 6)
    assert cache_bytes(29, 10, 576, "int8") == 10 * (29 * (576 + 4) + 6)


def test_another_dtype_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'float32'"):
        cache_bytes(1, 1, 1, "float3")


def test_a_cache_pays_from_the_training_on_that_makes_up_for_writing_it():
    assert trainings_until_cache_pays(**SECONDS, cached_tokens=1e6) == 2  # 1.2 / 0.9
    assert trainings_until_cache_pays(**SECONDS, cached_tokens=1e6, tokens_per_training=1e7) == 1
    assert trainings_until_cache_pays(**SECONDS, cached_tokens=1e6, tokens_per_training=1e5) == 14


def test_the_count_is_the_first_that_costs_no_more():
    n = trainings_until_cache_pays(**SECONDS, cached_tokens=7e5, tokens_per_training=1e5)

    def with_cache(trainings):
        return 7e5 * 1.2e-3 + trainings * 1e5 * 1e-4

    assert with_cache(n) <= n * 1e5 * 1e-3
    assert with_cache(n - 1) > (n - 1) * 1e5 * 1e-3


def test_a_cache_that_is_slower_than_the_model_never_pays():
    assert trainings_until_cache_pays(**(SECONDS | {"read_seconds_per_token": 1e-3}), cached_tokens=1) is None
