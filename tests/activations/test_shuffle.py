from collections import Counter

import pytest
import torch

from groupsae.activations.shuffle import Position, ShuffledStream
from groupsae.activations.source import SyntheticSource
from groupsae.errors import TextError


class Numbers:
    """Token n of row r is the number 10 r + n, at one hookpoint of width one; odd rows hold a token less."""

    hookpoints, d_model, row_tokens, batch_rows = ("layers.0",), 1, 10, 3
    device = torch.device("cpu")

    def __init__(self, num_rows=20, ragged=True):
        self.num_rows, self.ragged, self.read_rows = num_rows, ragged, []

    def read(self, rows):
        self.read_rows += rows
        numbers = [10.0 * row + n for row in rows for n in range(10 - (self.ragged and row % 2))]
        return torch.tensor(numbers).view(1, -1, 1)


def of(source, num_tokens, start=Position(), batch_tokens=16, buffer_tokens=60, seed=0):  # noqa: B008 - frozen
    stream = ShuffledStream(source, num_tokens, batch_tokens=batch_tokens, buffer_tokens=buffer_tokens, seed=seed)
    return [(position, x_LND.flatten().tolist()) for position, x_LND in stream.batches(start)]


def flat(batches):
    return [number for _, batch in batches for number in batch]


@pytest.mark.parametrize("num_tokens", [1, 16, 100, 190, 191, 1000])
def test_exactly_the_tokens_asked_for_are_given(num_tokens):
    batches = of(Numbers(), num_tokens)
    assert len(flat(batches)) == num_tokens == batches[-1][0].tokens


def test_an_epoch_gives_every_token_once():
    source = Numbers(ragged=False)
    assert sorted(flat(of(source, 200, buffer_tokens=50))) == list(map(float, range(200)))
    twice = Counter(flat(of(source, 400, buffer_tokens=50)))
    assert set(twice.values()) == {2}


def test_a_second_epoch_reads_the_rows_in_another_order():
    source = Numbers(ragged=False)
    of(source, 400, buffer_tokens=50)
    assert source.read_rows[:20] != source.read_rows[20:]
    assert sorted(source.read_rows[:20]) == sorted(source.read_rows[20:])


def test_the_tokens_of_a_block_are_dealt_by_seed_and_block():
    one_row = Numbers(num_rows=1)
    first = flat(of(one_row, 20, buffer_tokens=10, seed=1))
    assert first[:10] != first[10:]
    assert first != flat(of(one_row, 20, buffer_tokens=10, seed=2))


def test_the_tokens_of_a_batch_come_from_many_rows():
    batches = of(Numbers(num_rows=100), 900, buffer_tokens=500)
    assert all(len({int(number // 10) for number in batch}) > 8 for _, batch in batches)


def test_batches_are_of_nearly_equal_size():
    sizes = [len(batch) for _, batch in of(Numbers(num_rows=60), 500, buffer_tokens=100)]
    assert min(sizes[:-1]) >= 14 and max(sizes) <= 18


@pytest.mark.parametrize("at", [0, 1, 3, 5, 11])
def test_going_on_from_any_position_gives_what_would_have_come(at):
    whole = of(Numbers(), 300)
    assert of(Numbers(), 300, start=whole[at][0]) == whole[at + 1 :]


def test_going_on_reads_nothing_that_lies_before():
    whole, rest = Numbers(), Numbers()
    position = of(whole, 150)[5][0]
    of(rest, 150, start=position)
    assert position.block == 1
    assert rest.read_rows == whole.read_rows[6:] != []


def test_the_order_depends_on_the_seed_alone():
    assert of(Numbers(), 200, seed=1) == of(Numbers(), 200, seed=1)
    assert of(Numbers(), 200, seed=1) != of(Numbers(), 200, seed=2)


def test_a_batch_stays_as_it_is_when_the_next_are_read():
    stream = ShuffledStream(SyntheticSource(), 3000, batch_tokens=64, buffer_tokens=256, seed=0)
    kept = [(x_LND, x_LND.clone()) for _, x_LND in stream.batches()]
    assert all(torch.equal(x_LND, copy) for x_LND, copy in kept)


def test_every_layer_of_a_batch_holds_the_same_tokens():
    source = SyntheticSource(num_rows=8)
    rows = source.read(list(range(8)))
    stream = ShuffledStream(source, 256, batch_tokens=64, buffer_tokens=128, seed=0)
    for _, x_LND in stream.batches():
        places = [(rows[0] == x).all(-1).nonzero().item() for x in x_LND[0]]
        assert torch.equal(rows[:, places], x_LND)


def test_text_of_special_tokens_only_is_an_error_and_no_endless_loop():
    source = Numbers()
    source.read = lambda rows: torch.empty(1, 0, 1)
    with pytest.raises(TextError, match="only special tokens"):
        of(source, 100)
