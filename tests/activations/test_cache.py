"""A cache gives what its source gave, or says by name why it does not."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from permissions import binding
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_rows

from groupsae.activations import cache_writer
from groupsae.activations.cache import CachedActivations
from groupsae.activations.cache_format import CacheManifest
from groupsae.activations.cache_tensors import quantized
from groupsae.activations.cache_writer import text_digest, write_cache
from groupsae.activations.harvest import Harvester
from groupsae.activations.source import SyntheticSource, row_order
from groupsae.config import TopKConfig, TrainConfig
from groupsae.errors import (
    ConfigError,
    FitError,
    HookpointError,
    NumericalError,
    RunError,
    StorageError,
    TextError,
)
from groupsae.model_structure import base_model, first_tensor, residual_stream
from groupsae.models import load_model
from groupsae.partition import Partition
from groupsae.text.tokens import TokenRows
from groupsae.training.trainer import train

FACTS = {"model": "tiny", "revision": None, "text": "0a1b"}
ROWS = [[0], [5, 6, 7], [36, 9, 10, 11, 3, 3]]


@pytest.fixture
def source():
    return SyntheticSource(3, 16, 37, 8)


@pytest.fixture
def written(source, tmp_path):
    """The folder of a float32 cache of `source`, 4 shards of training rows and 2 of held-out ones."""
    write(source, tmp_path / "cache")
    return tmp_path / "cache"


def write(source, folder, **options):
    options = {"dtype": "float32", "rows_per_shard": 10, "facts": FACTS, **options}
    return write_cache(source, folder, held_out=SyntheticSource(3, 16, 13, 8, seed=5), **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def faulty_at_position_3(output):
    first_tensor(output)[:, 3:4, 0] = float("nan")
    return output


def change_manifest(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# What is read


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_cache_reads_what_its_source_reads_in_the_dtype_of_the_cache(source, tmp_path, dtype):
    write(source, tmp_path, dtype=dtype)
    cache, kept = CachedActivations(tmp_path, verify=True), getattr(torch, dtype)
    assert (cache.hookpoints, cache.d_model, cache.num_rows, cache.row_tokens) == (source.hookpoints, 16, 37, 8)
    for rows in ROWS:
        assert torch.equal(cache.read(rows), source.read(rows).to(kept))
        x_LBTD, special_BT = cache.read_positions(rows)
        assert torch.equal(x_LBTD, source.read_positions(rows)[0].to(kept))
        assert not special_BT.any()
    assert cache.read([]).shape == (3, 0, 16)


def test_the_cache_of_the_demo_model_is_the_harvester_bit_for_bit(tmp_path):
    model, tokenizer = load_model("demo", device="cpu")
    rows = TokenRows.from_files(__file__, tokenizer, context_length=16, max_tokens=256, max_held_out_tokens=128)
    harvester = Harvester(model, rows, residual_stream(model), batch_rows=4)
    facts = {"text": text_digest(rows)}
    write_cache(harvester, tmp_path, held_out=harvester.held_out(), dtype="float32", rows_per_shard=8, facts=facts)
    cache = CachedActivations(tmp_path, batch_rows=4)
    for side, kept, text in ((harvester, cache, rows), (harvester.held_out(), cache.held_out(), rows.held_out)):
        assert side.num_rows == kept.num_rows
        for batch in torch.arange(side.num_rows // 4 * 4).split(4):
            batch = batch.tolist()
            assert torch.equal(side.read(batch), kept.read(batch))
            assert all(map(torch.equal, side.read_positions(batch), kept.read_positions(batch)))
            assert torch.equal(kept.tokens(batch), text[batch])


@pytest.mark.parametrize("skip_special", [True, False])
@pytest.mark.parametrize("on_nan", ["stop", "mask"])
def test_the_same_positions_are_left_out_as_by_the_harvester(tmp_path, skip_special, on_nan):
    model, rows = tiny_model(), tiny_rows(special_ids=tuple(range(40)))
    rows.ids_RT[:, 3] = 200
    if on_nan == "mask":
        base_model(model).layers[1].register_forward_hook(lambda _module, _inputs, output: faulty_at_position_3(output))
    options = {"skip_special": skip_special, "on_nan": on_nan, "batch_rows": 4}
    source = Harvester(model, rows, residual_stream(model)[:2], **options)
    write_cache(source, tmp_path, dtype="float32", facts={})
    cache = CachedActivations(tmp_path, batch_rows=4)
    assert cache.skip_special == skip_special
    source.num_masked = 0
    for batch in ([0, 1, 2, 3], [4, 5, 6, 7]):
        assert torch.equal(source.read(batch), cache.read(batch))
        assert all(map(torch.equal, source.read_positions(batch), cache.read_positions(batch)))
    assert cache.num_masked == source.num_masked
    assert (cache.num_masked > 0) == (on_nan == "mask")


def test_special_tokens_can_be_counted_unless_they_may_not_be_finite(tmp_path):
    model, rows = tiny_model(), tiny_rows(special_ids=tuple(range(40)))
    for on_nan in ("stop", "mask"):
        source = Harvester(model, rows, ["layers.0"], on_nan=on_nan)
        write_cache(source, tmp_path / on_nan, dtype="float32", facts={})
    everything = CachedActivations(tmp_path / "stop", skip_special=False).read([1, 2])
    assert torch.equal(everything, Harvester(model, rows, ["layers.0"], skip_special=False).read([1, 2]))
    with pytest.raises(ConfigError, match="special tokens may not be finite"):
        CachedActivations(tmp_path / "mask", skip_special=False)


def test_masked_special_tokens_that_are_counted_are_refused(tmp_path):
    model = tiny_model()
    model.get_input_embeddings().weight.data[7] = float("nan")
    rows = TokenRows(np.array([[1, 7, 2, 3]]), special_ids=(7,))
    source = Harvester(model, rows, ["layers.0"], on_nan="mask", skip_special=False)
    source.read([0])
    with pytest.raises(NumericalError, match="skip_special"):
        write_cache(source, tmp_path, facts={})


def test_narrowed_and_held_out_read_their_part(written, source):
    cache = CachedActivations(written)
    narrow = cache.narrowed(("layers.2", "layers.0"))
    assert narrow.hookpoints == ("layers.0", "layers.2")
    assert torch.equal(narrow.read([36, 1]), source.read([36, 1])[[0, 2]])
    held_out = narrow.held_out()
    assert (held_out.num_rows, held_out.hookpoints) == (13, narrow.hookpoints)
    assert torch.equal(held_out.read([12]), SyntheticSource(3, 16, 13, 8, seed=5).read([12])[[0, 2]])
    with pytest.raises(TextError, match="held out"):
        held_out.held_out()
    with pytest.raises(HookpointError, match=r"layers\.2"):
        cache.narrowed(("layers.9",))
    with pytest.raises(IndexError, match="no row 37"):
        cache.read([37])


def test_int8_is_wrong_by_half_a_scale_at_most(source, tmp_path):
    write(source, tmp_path, dtype="int8")
    x_LBTD, kept_LBTD = source.read_positions([3, 20])[0], CachedActivations(tmp_path).read_positions([3, 20])[0]
    assert kept_LBTD.dtype == torch.float32
    bound_LBT = x_LBTD.abs().amax(-1) / 254
    assert ((x_LBTD - kept_LBTD).abs() <= bound_LBT[..., None] * 1.0001).all()


def test_int8_keeps_zero_and_the_largest():
    q, scales = quantized(torch.tensor([[0.0, 0.0], [-254.0, 3.0]]))
    assert q.tolist() == [[0, 0], [-127, 2]]
    assert scales.tolist() == [0, 2]


def test_a_part_of_the_rows_is_drawn_as_training_draws_them(source, tmp_path):
    manifest = write(source, tmp_path, num_tokens=33, seed=4)
    cache = CachedActivations(tmp_path)
    chosen = row_order(37, 4, 0)[:5].sort().values.tolist()
    assert (cache.num_rows, manifest.seed) == (5, 4)
    assert torch.equal(cache.read(range(5)), source.read(chosen))


def test_training_from_a_cache_gives_the_weights_of_training_from_the_model(tmp_path):
    model, rows = tiny_model(), tiny_rows(32)
    harvester = Harvester(model, rows, residual_stream(model)[:2], batch_rows=4)
    write_cache(harvester, tmp_path / "cache", dtype="float32", facts=FACTS, rows_per_shard=8)
    budget = TrainConfig(num_tokens=512, batch_tokens=64, scale_tokens=128)
    cache = CachedActivations(tmp_path / "cache", batch_rows=4)
    for name, source in (("from-model", harvester), ("from-cache", cache)):
        suite = train(source, Partition((("layers.0", "layers.1"),)), TopKConfig(k=4), budget, buffer_tokens=128)
        suite.save(tmp_path / name)
    whole = tmp_path / "from-model"
    paths = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert paths
    for path in paths:
        assert (whole / path).read_bytes() == (tmp_path / "from-cache" / path).read_bytes()


def test_reading_a_cache_needs_no_transformers(written):
    code = (
        "import sys; from groupsae import CachedActivations; "
        f"CachedActivations({str(written)!r}).held_out().read([0]); print('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# What is written


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_killed_harvest_goes_on_after_its_whole_shards(written, source, tmp_path, monkeypatch):
    calls, done, read = [], [], SyntheticSource.read_positions

    def killed(self, rows):
        calls.append(rows)
        if len(calls) == 5:
            raise Killed
        return read(self, rows)

    monkeypatch.setattr(SyntheticSource, "read_positions", killed)
    with pytest.raises(Killed):
        write(source, tmp_path / "again")
    with pytest.raises(RunError, match="not finished"):
        CachedActivations(tmp_path / "again")
    calls.clear()
    monkeypatch.setattr(SyntheticSource, "read_positions", lambda self, rows: (calls.append(rows), read(self, rows))[1])
    manifest = write(source, tmp_path / "again", progress=done.append)
    assert [rows[0] for rows in calls] == [20, 28, 30, 0, 8, 10]
    assert contents(tmp_path / "again") == contents(written)
    assert sum(done) == manifest.data_bytes(37) + manifest.data_bytes(13)


def test_a_shard_that_was_damaged_meanwhile_is_written_again(written, source):
    before = contents(written)
    (written / "train-00001.safetensors").write_bytes(b"")
    write(source, written)
    assert contents(written) == before


def test_a_whole_cache_is_left_as_it_is(written, source, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    monkeypatch.delattr(SyntheticSource, "read_positions")
    write(source, written)
    assert {path: path.stat().st_mtime_ns for path in written.iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"facts": {**FACTS, "model": "other"}}, "model: asked"),
        ({"facts": {"model": "tiny"}}, "revision: not asked"),
        ({"num_tokens": 80}, "rows: asked"),
        ({"rows_per_shard": 5}, "rows per shard"),
    ],
)
def test_another_cache_is_not_overwritten(written, source, changed, said):
    before = contents(written)
    with pytest.raises(RunError, match=said):
        write(source, written, **changed)
    assert contents(written) == before


def test_a_folder_of_something_else_is_refused(source, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        write(source, tmp_path)
    assert list(contents(tmp_path)) == ["thesis.txt"]


def test_too_small_a_disk_is_said_before_anything_is_computed(source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**14))
    monkeypatch.delattr(SyntheticSource, "read_positions")
    with pytest.raises(FitError, match=r"needs 0\.1 MiB .* where 0\.0 MiB are free"):
        write(source, tmp_path)


def test_a_disk_that_fills_up_leaves_what_can_be_gone_on_with(written, source, tmp_path, monkeypatch):
    save, saved = cache_writer.save_file, []

    def fills_up(tensors, path):
        saved.append(path)
        if len(saved) == 3:
            path.write_bytes(b"half a sha")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(cache_writer, "save_file", fills_up)
    with pytest.raises(StorageError, match=r"No space left.* 2 of 6 shards of the cache are whole; harvest again"):
        write(source, tmp_path / "again")
    monkeypatch.setattr(cache_writer, "save_file", save)
    write(source, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(written)


def test_activations_beyond_float16_are_refused(tmp_path):
    model = tiny_model()
    model.get_input_embeddings().weight.data.mul_(1e7)
    with pytest.raises(NumericalError, match=r"layers\.0 in row 0 are not finite, or too large for float16"):
        write_cache(Harvester(model, tiny_rows(), ["layers.0"]), tmp_path, dtype="float16", facts={})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dtype": "int4"}, "one of bfloat16"),
        ({"num_tokens": 0}, "at least 1"),
        ({"facts": {"model": object()}}, "JSON"),
        ({"facts": {"share": float("nan")}}, "JSON"),
    ],
)
def test_impossible_arguments(source, tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        write(source, tmp_path, **changed)


def test_a_held_out_source_that_reads_otherwise_is_refused(source, tmp_path):
    with pytest.raises(ConfigError, match="d_model is 8"):
        write_cache(source, tmp_path, held_out=SyntheticSource(3, 8, 4, 8), facts={})


# What is refused


def test_a_cache_of_something_else_is_refused_by_name(written):
    cache = CachedActivations(written)
    cache.require_cache_of({"model": "tiny", "text": "0a1b"}, ["layers.1"])
    with pytest.raises(RunError, match='model: asked "huge", found "tiny"'):
        cache.require_cache_of({"model": "huge"})
    with pytest.raises(RunError, match=r"tokenizer: asked .* found nothing"):
        cache.require_cache_of({"tokenizer": "t"})
    with pytest.raises(RunError, match=r"layers\.7 asked, but found only layers\.0, layers\.1, layers\.2"):
        cache.require_cache_of({}, ["layers.7"])


def test_truncated_and_missing_shards_are_named(written):
    path = written / "train-00002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(RunError, match=r"train-00002\.safetensors is truncated"):
        CachedActivations(written)
    path.unlink()
    with pytest.raises(RunError, match=r"train-00002\.safetensors is missing"):
        CachedActivations(written)


def test_a_shard_that_is_cut_off_later_is_an_error_and_no_crash(written):
    cache = CachedActivations(written)
    (written / "train-00002.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"train-00002\.safetensors cannot be read any more"):
        cache.read([25])


def test_a_changed_bit_is_found_if_asked(written):
    path = written / "held_out-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    CachedActivations(written)
    with pytest.raises(RunError, match=r"held_out-00001\.safetensors is damaged: its SHA-256"):
        CachedActivations(written, verify=True)


@pytest.mark.parametrize("header", [b"", b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}"])
def test_a_shard_that_is_no_safetensors_file_is_refused(written, header):
    path = written / "train-00000.safetensors"
    path.write_bytes(header + path.read_bytes()[len(header) :] if header else bytes(path.stat().st_size))
    with pytest.raises(RunError, match=r"train-00000\.safetensors .*damaged"):
        CachedActivations(written)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": "photos"}, "is no activation cache: its format is 'photos'"),
        ({"version": 2}, "format version 2; this groupsae reads version 1. Update"),
        ({"hookpoints": []}, "is damaged: hookpoints"),
        ({"d_model": "wide"}, "is damaged: d_model"),
        ({"d_model": 17}, "its activations must be F32"),
        ({"dtype": "int8"}, "its activations must be I8"),
        ({"rows": {"train": 36}}, "36"),
        ({"shards": [{"file": "../x", "split": "train", "rows": 37, "bytes": 9, "sha256": ""}]}, "damaged"),
    ],
)
def test_damaged_foreign_and_newer_manifests_are_refused(written, values, said):
    change_manifest(written, **values)
    with pytest.raises(RunError, match=said):
        CachedActivations(written)


def test_a_name_that_leads_out_of_the_folder_is_refused(written):
    shards = [{"file": "../x", "split": "train", "rows": 37, "bytes": 9, "sha256": ""}]
    change_manifest(written, shards=shards, rows={"train": 37})
    with pytest.raises(RunError, match="no place within"):
        CachedActivations(written)


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "\x00"])
def test_a_manifest_that_is_none_is_refused(written, text):
    (written / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json"):
        CachedActivations(written)


def test_a_folder_without_a_cache_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError, match="no activation cache"):
            CachedActivations(folder)


def test_a_cache_on_a_read_only_disk_is_fine(written, source):
    paths = [written, *written.iterdir()]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with binding():
            assert torch.equal(CachedActivations(written, verify=True).read([30]), source.read([30]))
    finally:
        written.chmod(0o755)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_refused_when_read(source, tmp_path, dtype, value):
    write(source, tmp_path, dtype=dtype)
    change_manifest(tmp_path, finite=False)
    path = tmp_path / "train-00001.safetensors"
    tensors = load_file(path)
    tensors["scales" if dtype == "int8" else "activations"][1, 4, 2] = value
    save_file(tensors, path)
    cache = CachedActivations(tmp_path)
    with pytest.raises(NumericalError, match=r"layers\.1 hold NaN or infinity in row 14"):
        cache.read([3, 14])
    assert torch.isfinite(cache.narrowed(("layers.0",)).read([3, 14])).all()


# What it occupies

PEAK = """
import resource, sys, torch
from groupsae import CachedActivations
cache = CachedActivations(sys.argv[1])
cache.read([0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for rows in torch.arange(cache.num_rows).split(8):
    cache.read(rows.tolist())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in KiB")
def test_memory_does_not_grow_with_the_cache(tmp_path):
    """A cache of 96 MiB in reads of 6 MiB: a map of the whole file, or a list of what was read, would show."""

    class Same(SyntheticSource):
        def read_positions(self, rows):
            return torch.ones(3, len(rows), 64, 1024), torch.zeros(len(rows), 64, dtype=torch.bool)

    write_cache(Same(3, 1024, 128, 64), tmp_path, dtype="float32", facts={}, rows_per_shard=64)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 95 * 2**20
    grown = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True)
    assert int(grown.stdout) < 32, grown.stderr


# What another program writes


def test_the_example_of_the_documentation_writes_a_cache(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "activation-cache.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "activation-cache.md", "exec"), names)
    cache = CachedActivations("cache", verify=True)
    cache.require_cache_of({"model": "my model"}, ["layers.1"])
    assert (cache.num_rows, cache.row_tokens, cache.d_model) == (8, 16, 32)
    held_out = torch.from_numpy(names["tensors"]["activations"])
    assert torch.equal(cache.held_out().read_positions([2, 3])[0], held_out[:, 2:4])


def test_the_documentation_names_every_key_and_tensor():
    page = (Path(__file__).parents[2] / "docs" / "activation-cache.md").read_text(encoding="utf-8")
    manifest = CacheManifest(facts={}, hookpoints=("a",), d_model=1, dtype="int8", row_tokens=1, rows={"train": 1})
    for name in [*CacheManifest.model_fields, *manifest.tensors(1)]:
        assert f"| `{name}` |" in page
