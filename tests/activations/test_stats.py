"""Statistics of activations: measured in one pass, saved with a run, and read by all that needs them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from groupsae.activations.source import SyntheticSource, stream
from groupsae.activations.stats import CenteringSource, load_stats, measure_stats, measure_stats_at, save_stats
from groupsae.errors import ConfigError, RunError
from groupsae.grouping.measure import METRICS, measure_distances
from groupsae.training.fit import measure_scales

SOURCE = SyntheticSource(num_layers=3, d_model=8, num_rows=40)
EVERYTHING = torch.cat(list(stream(SOURCE, 10**9, 0)), dim=1).double()


@pytest.mark.parametrize("tokens", [1, 100, 256, 10**9])
def test_they_are_the_mean_and_the_mean_norm_of_the_first_tokens(tokens):
    found, x_LND = measure_stats(SOURCE, tokens), EVERYTHING[:, :tokens]
    assert found.count == x_LND.shape[1]
    torch.testing.assert_close(found.mean_LD, x_LND.mean(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.mean_norm_L, x_LND.norm(dim=-1).mean(1), rtol=1e-6, atol=0)


def test_one_pass_gives_them_for_several_numbers_of_tokens():
    told = []
    found = measure_stats_at(SOURCE, (300, 100, 256, 10**9), progress=told.append)
    assert sum(told) == EVERYTHING.shape[1]
    for tokens, stats in found.items():
        alone = measure_stats(SOURCE, tokens)
        assert stats.count == alone.count
        torch.testing.assert_close(stats.mean_LD, alone.mean_LD, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(stats.mean_norm_L, alone.mean_norm_L, rtol=1e-12, atol=0)


def test_centered_norms_are_of_what_the_mean_leaves():
    found, x_LND = measure_stats(SOURCE, 200, centered=True), EVERYTHING[:, :200]
    expected_L = (x_LND - x_LND.mean(1, keepdim=True)).norm(dim=-1).mean(1)
    torch.testing.assert_close(found.centered_norm_L, expected_L, rtol=1e-6, atol=0)


@pytest.mark.parametrize("others", [0, 100, 400, 900])
@pytest.mark.parametrize("metric", METRICS)
def test_norms_measured_while_distances_are_read_are_the_same_and_cost_no_pass(metric, others):
    source = Counted(num_layers=3, d_model=8, num_rows=40)
    centering = CenteringSource(source, measure_stats(SOURCE, 400), 0)
    if others:
        measure_distances(metric, centering, others, stats=measure_stats(SOURCE, others))
    by_others = source.rows_read
    found = centering.finish()
    assert source.rows_read - by_others == max(0, 16 - 8 * -(-others // 256))  # batches of 8 rows, 256 tokens
    torch.testing.assert_close(found.centered_norm_L, measure_stats(SOURCE, 400, centered=True).centered_norm_L)
    assert torch.equal(found.mean_LD, measure_stats(SOURCE, 400).mean_LD)


class Counted(SyntheticSource):
    """A source that counts the rows that are read."""

    rows_read = 0

    def read(self, rows):
        self.rows_read += len(rows)
        return super().read(rows)


@pytest.mark.parametrize("metric", METRICS)
def test_distances_from_given_statistics_are_the_same_and_read_the_text_once_less(metric):
    one, other = (Counted(num_layers=3, d_model=8, num_rows=40) for _ in range(2))
    alone = measure_distances(metric, one, 600)
    stats = measure_stats_at(SOURCE, (600, 900))[600]
    given = measure_distances(metric, other, 600, stats=stats)
    assert other.rows_read == {"svcca": 2 / 3}.get(metric, 1 / 2) * one.rows_read
    torch.testing.assert_close(torch.tensor(given.matrix), torch.tensor(alone.matrix), rtol=1e-6, atol=1e-9)


def test_statistics_of_other_hookpoints_are_refused():
    stats = measure_stats(SOURCE, 100)
    with pytest.raises(ConfigError, match="statistics are of"):
        measure_distances("angular", SyntheticSource(num_layers=2, d_model=8), 100, stats=stats)


@pytest.mark.parametrize(("center", "passes"), [(False, 0), (True, 0)])
def test_scales_from_given_statistics_are_the_same(center, passes):
    source = Counted(num_layers=3, d_model=8, num_rows=40)
    stats = measure_stats(SOURCE, 1280, centered=center)
    given = measure_scales(source, 1280, center=center, stats=stats)
    assert source.rows_read == passes * 40
    alone = measure_scales(SOURCE, 1280, center=center)
    torch.testing.assert_close(given.scale_L, alone.scale_L, rtol=1e-6, atol=0)
    torch.testing.assert_close(given.center_LD, alone.center_LD, rtol=1e-6, atol=1e-9)


# ---- on disk


def test_they_survive_being_saved_to_the_bit(tmp_path):
    stats = {100: measure_stats(SOURCE, 100, centered=True), 300: measure_stats(SOURCE, 300)}
    save_stats(stats, tmp_path / "stats.safetensors")
    loaded = load_stats(tmp_path / "stats.safetensors", SOURCE.hookpoints)
    assert loaded.keys() == stats.keys()
    for tokens, one in loaded.items():
        assert one.count == stats[tokens].count
        assert torch.equal(one.mean_LD, stats[tokens].mean_LD)
        assert torch.equal(one.mean_norm_L, stats[tokens].mean_norm_L)
    assert torch.equal(loaded[100].centered_norm_L, stats[100].centered_norm_L)
    assert loaded[300].centered_norm_L is None


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, keep):
    file = tmp_path / "stats.safetensors"
    save_stats(measure_stats_at(SOURCE, (100,)), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RunError, match="missing or damaged"):
        load_stats(file, SOURCE.hookpoints)


@pytest.mark.parametrize("wrong", [torch.full((3,), torch.nan), torch.ones(2)])
def test_numbers_that_are_not_finite_or_not_of_these_hookpoints_are_an_error(tmp_path, wrong):
    file = tmp_path / "stats.safetensors"
    save_stats(measure_stats_at(SOURCE, (100,)), file)
    save_file(load_file(file) | {"100.mean_norm": wrong.double()}, file)
    with pytest.raises(RunError, match="finite mean and norm"):
        load_stats(file, SOURCE.hookpoints)
