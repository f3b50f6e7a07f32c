"""Firings on disk are those of the SAEs, whatever the chunks, and are not read twice."""

import numpy as np
import pytest
from latent_cases import small_suite
from tiny import tiny_model, tiny_rows

from groupsae.activations.harvest import Harvester
from groupsae.activations.positions import OutlierRule
from groupsae.errors import RunError
from groupsae.evaluation.sites import sites
from groupsae.interpretability import firings
from groupsae.interpretability.firings import FiringFiles, write_firings


@pytest.fixture(scope="module")
def source():
    """Rows of a tiny model in which special tokens and first positions are left out."""
    rows = tiny_rows(10, 8, special_ids=tuple(range(20)))
    return Harvester(tiny_model(), rows, ["layers.0", "layers.1"], batch_rows=3, outliers=OutlierRule(1, 0))


@pytest.fixture(scope="module")
def pairs():
    """A group of two layers, and an SAE for each of them."""
    return sites(
        {
            "groups": small_suite((("layers.0", "layers.1"),)),
            "own": small_suite((("layers.0",), ("layers.1",)), d_sae=32),
        }
    )


def dense(source, bound, layer):
    """The values (S, N) at every position of all rows, zero where a position is left out."""
    x_LBTD, out_BT = source.read_positions(list(range(source.num_rows)))
    latents_NS = bound.encode(x_LBTD[layer].flatten(0, 1))
    latents_NS[out_BT.flatten()] = 0
    return latents_NS.T.numpy(), ~out_BT.numpy()


@pytest.mark.parametrize("chunk", [1, 10**9])
def test_they_are_those_of_the_saes_at_the_positions_that_count(source, pairs, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(firings, "FIRINGS_PER_CHUNK", chunk)
    write_firings(pairs, source, range(source.num_rows), tmp_path, "key")
    files = FiringFiles(tmp_path)
    assert len(files.paths) == (4 if chunk == 1 else 1)
    for number, (site, bound) in enumerate(pairs.items()):
        value_SN, kept_RT = dense(source, bound, source.hookpoints.index(site.hookpoint))
        assert 0 < kept_RT.sum() < kept_RT.size
        assert (files.kept_RT() == kept_RT).all()
        found = files.at(number)
        assert (found.counts == (value_SN > 0).sum(1)).all() and found.counts.sum()
        for low, high in ((0, len(value_SN)), (5, 9)):
            part = found.of(low, high)
            again_SN = np.zeros((high - low, value_SN.shape[1]))
            again_SN[part.latent_M, part.position_M] = part.value_M
            assert np.allclose(again_SN, value_SN[low:high], atol=1e-6)
            assert (np.diff(part.latent_M * value_SN.shape[1] + part.position_M) > 0).all()


def test_chunks_on_disk_are_not_read_again_unless_they_are_of_another_key(source, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(firings, "FIRINGS_PER_CHUNK", 1)
    write_firings(pairs, source, range(source.num_rows), tmp_path, "key")
    whole = {path.name: path.read_bytes() for path in FiringFiles(tmp_path).paths}
    for name in sorted(whole)[2:]:
        (tmp_path / name).unlink()
    read, real = [], source.read_positions
    monkeypatch.setattr(source, "read_positions", lambda rows: read.append(rows) or real(rows))
    write_firings(pairs, source, range(source.num_rows), tmp_path, "key")
    assert read == [[6, 7, 8], [9]]
    assert {path.name: path.read_bytes() for path in FiringFiles(tmp_path).paths} == whole
    write_firings(pairs, source, range(source.num_rows), tmp_path, "another")
    assert read[2:] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_a_damaged_chunk_is_named(source, pairs, tmp_path):
    write_firings(pairs, source, range(source.num_rows), tmp_path, "key")
    path = FiringFiles(tmp_path).paths[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=path.name):
        FiringFiles(tmp_path).at(0)


def test_it_is_said_that_there_are_none(tmp_path):
    with pytest.raises(RunError, match="holds no firings"):
        FiringFiles(tmp_path)


def test_rows_are_counted_as_they_are_read(source, pairs, tmp_path):
    progress = []
    write_firings(pairs, source, [4, 2], tmp_path, "key", progress.append)
    assert sum(progress) == 2 * source.row_tokens
