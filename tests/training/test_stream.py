"""The tokens that training sees: their order, their number, their scale."""

import itertools

import pytest
import torch
from training_cases import make_source

from groupsae.activations.shuffle import BufferLayout, Position, ShuffledStream
from groupsae.activations.source import stream
from groupsae.training.fit import measure_scales


class Numbered:
    """Activations that say which token they are: row and position."""

    hookpoints, d_model, row_tokens, batch_rows = ("layers.0", "layers.1"), 2, 6, 4
    device, num_masked = torch.device("cpu"), 0

    def __init__(self, num_rows=30):
        self.num_rows = num_rows

    def read(self, rows):
        x_ND = torch.tensor([[row, position] for row in rows for position in range(self.row_tokens)]).float()
        return torch.stack([x_ND, -x_ND])


class Ragged(Numbered):
    """The same, with row r giving only r % 6 + 1 of its tokens."""

    def read(self, rows):
        x_LND = super().read(rows)
        return x_LND[:, x_LND[0, :, 1] <= x_LND[0, :, 0] % 6]


class Masked(Ragged):
    """The same, counting the tokens that are left out."""

    def read(self, rows):
        x_LND = super().read(rows)
        self.num_masked += len(rows) * self.row_tokens - x_LND.shape[1]
        return x_LND


def tokens(x_LND):
    assert torch.equal(x_LND[1], -x_LND[0])
    return [tuple(token) for token in x_LND[0].int().tolist()]


def make_stream(num_tokens, source=None, seed=0, batch=24, buffer=60):
    return ShuffledStream(source or Numbered(), num_tokens, BufferLayout(Numbered.hookpoints), batch, buffer, seed)


def batches(stream, start=Position()):  # noqa: B008 - frozen
    """Each position with x_LND."""
    return [
        (position, torch.stack([batch.read((name,))[0] for name in Numbered.hookpoints]))
        for position, batch in stream.batches(start)
    ]


def read_all(num_tokens, **options):
    return [token for _, x in batches(make_stream(num_tokens, **options)) for token in tokens(x)]


def test_every_token_of_an_epoch_comes_exactly_once():
    for epoch in range(2):
        seen = read_all(360)[epoch * 180 : (epoch + 1) * 180]
        assert sorted(seen) == [(row, position) for row in range(30) for position in range(6)]


def test_tokens_that_are_left_out_leave_every_other_exactly_once():
    assert sorted(read_all(105, source=Ragged())) == [(r, p) for r in range(30) for p in range(6) if p <= r % 6]


@pytest.mark.parametrize("num_rows", [1, 7, 29])
def test_epochs_that_do_not_fit_blocks_still_give_every_token_equally_often(num_rows):
    seen = read_all(num_rows * 6 * 10, source=Numbered(num_rows))
    counts = {token: seen.count(token) for token in seen}
    assert len(counts) == num_rows * 6
    # Only the block that the stream ends in may be uneven.
    assert max(counts.values()) - min(counts.values()) <= 1 + 60 // (num_rows * 6)


def test_epochs_differ_in_order():
    seen = read_all(360)
    assert seen[:180] != seen[180:]


def test_seeds_differ_and_decide():
    assert read_all(180, seed=0) == read_all(180, seed=0) != read_all(180, seed=1)


@pytest.mark.parametrize("num_tokens", [1, 23, 24, 25, 180, 181, 777])
@pytest.mark.parametrize("source", [Numbered(), Ragged()])
def test_exactly_the_tokens_asked_for_are_given(num_tokens, source):
    given = batches(make_stream(num_tokens, source))
    assert sum(x.shape[1] for _, x in given) == num_tokens == given[-1][0].tokens
    assert all(x.shape[1] for _, x in given)


def test_batches_are_of_the_size_asked_for_or_nearly():
    sizes = [x.shape[1] for _, x in batches(make_stream(1800, batch=24, buffer=120))]
    assert all(abs(size - 24) <= 1 for size in sizes)


def test_the_stream_can_be_gone_on_with_at_any_position():
    whole = batches(make_stream(500))
    for index, (position, _) in enumerate(whole):
        rest = batches(make_stream(500), position)
        assert [p for p, _ in rest] == [p for p, _ in whole[index + 1 :]]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(rest, whole[index + 1 :], strict=True))


def test_a_position_counts_what_was_left_out_however_often_its_block_is_read():
    whole = [position for position, _ in batches(make_stream(500, source=Masked()))]
    assert 0 < whole[0].masked < whole[-1].masked
    for index, position in enumerate(whole):
        assert [after for after, _ in batches(make_stream(500, source=Masked()), position)] == whole[index + 1 :]


def test_a_position_counts_tokens():
    total = 0
    for position, x in batches(make_stream(500)):
        total += x.shape[1]
        assert position.tokens == total


def test_the_tokens_of_a_batch_come_from_many_rows():
    for _, x in batches(make_stream(180)):
        assert len({row for row, _ in tokens(x)}) >= 7


def test_tokens_that_are_neighbors_in_the_text_are_not_neighbors_in_a_batch():
    seen = read_all(180)
    beside = sum(a[0] == b[0] for a, b in itertools.pairwise(seen))
    assert beside < 180 * 0.25


# ---- scales


def naive_scales(source, num_tokens, center, seed=0):
    x_LND = torch.cat(list(stream(source, num_tokens, seed)), dim=1).double()
    center_LD = x_LND.mean(1) if center else torch.zeros(len(x_LND), x_LND.shape[2], dtype=torch.float64)
    norms_L = [
        sum(torch.linalg.vector_norm(x_D - c_D) for x_D in x_ND) for x_ND, c_D in zip(x_LND, center_LD, strict=True)
    ]
    return x_LND.shape[1] / torch.stack(norms_L), center_LD


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("num_tokens", [100, 640])
def test_a_scale_is_one_over_the_mean_norm_of_all_tokens_asked_for(num_tokens, center):
    source = make_source()
    scales = measure_scales(source, num_tokens, center=center)
    scale_L, center_LD = naive_scales(source, num_tokens, center)
    torch.testing.assert_close(scales.scale_L.double(), scale_L, rtol=1e-6, atol=0)
    torch.testing.assert_close(scales.center_LD.double(), center_LD, rtol=1e-6, atol=1e-7)


def test_a_scale_is_measured_over_many_batches():
    """One batch is not enough: its rows are of another size than the rest."""

    class Uneven:
        hookpoints, d_model, row_tokens, batch_rows, num_rows = ("layers.0",), 4, 5, 2, 40
        device = torch.device("cpu")

        def read(self, rows):
            return torch.cat([torch.full((1, 5, 4), float(row + 1)) for row in rows], dim=1)

    # Mean of 1..40, each of norm 2 * number.
    assert measure_scales(Uneven(), 200).scale_L.item() == pytest.approx(1 / 41)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_of_half_precision_activations_are_summed_in_full(dtype):
    source = make_source()
    read = source.read
    source.read = lambda rows: read(rows).to(dtype)
    scales = measure_scales(source, 640, center=True)
    scale_L, center_LD = naive_scales(source, 640, True)
    assert scales.scale_L.dtype == scales.center_LD.dtype == torch.float32
    torch.testing.assert_close(scales.scale_L.double(), scale_L, rtol=1e-5, atol=0)
    torch.testing.assert_close(scales.center_LD.double(), center_LD, rtol=1e-5, atol=1e-6)


def test_normalized_tokens_have_mean_norm_one_at_every_layer():
    source = make_source()
    for center in (False, True):
        scales = measure_scales(source, 640, center=center)
        x_LND = torch.cat(list(stream(source, 640, 0)), dim=1)
        for layer, x_ND in enumerate(x_LND):
            z_ND = scales.normalize(x_ND, torch.full((640,), layer))
            assert z_ND.norm(dim=1).mean().item() == pytest.approx(1, rel=1e-5)
            if center:
                assert z_ND.mean(0).abs().max() < 1e-5
