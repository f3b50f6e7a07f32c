from collections import Counter

import pytest
import torch

from groupsae.activations.shuffle import BufferLayout, Position, ShuffledStream
from groupsae.activations.source import SyntheticSource
from groupsae.errors import TextError


class Numbers:
    """Token n of row r is the number 10 r + n, at one hookpoint of width one; odd rows hold a token less."""

    hookpoints, d_model, row_tokens, batch_rows = ("layers.0",), 1, 10, 3
    device, num_masked = torch.device("cpu"), 0

    def __init__(self, num_rows=20, ragged=True):
        self.num_rows, self.ragged, self.read_rows = num_rows, ragged, []

    def read(self, rows):
        self.read_rows += rows
        numbers = [10.0 * row + n for row in rows for n in range(10 - (self.ragged and row % 2))]
        return torch.tensor(numbers).view(1, -1, 1)


def of(source, num_tokens, start=Position(), batch_tokens=16, buffer_tokens=60, seed=0):  # noqa: B008 - frozen
    stream = ShuffledStream(source, num_tokens, BufferLayout(source.hookpoints), batch_tokens, buffer_tokens, seed)
    return [(position, batch.read(("layers.0",))[0].flatten().tolist()) for position, batch in stream.batches(start)]


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


def test_what_was_read_stays_as_it_is_when_the_next_batches_come():
    source = SyntheticSource()
    stream = ShuffledStream(source, 3000, BufferLayout(source.hookpoints), 64, 256, 0)
    kept = [x_ND for _, batch in stream.batches() for x_ND in [batch.read(("layers.1",))[0]]]
    again = [batch.read(("layers.1",))[0].clone() for _, batch in stream.batches()]
    assert all(map(torch.equal, kept, again))


def test_every_layer_of_a_batch_holds_the_same_tokens():
    source = SyntheticSource(num_rows=8)
    rows_LND = source.read(list(range(8)))
    for _, batch in ShuffledStream(source, 256, BufferLayout(source.hookpoints), 64, 128, 0).batches():
        x_LND = torch.stack([batch.read((name,))[0] for name in source.hookpoints])
        places = [(rows_LND[0] == x_D).all(-1).nonzero().item() for x_D in x_LND[0]]
        assert torch.equal(rows_LND[:, places], x_LND)


def test_text_of_special_tokens_only_is_an_error_and_no_endless_loop():
    source = Numbers()
    source.read = lambda rows: torch.empty(1, 0, 1)
    with pytest.raises(TextError, match="only special tokens"):
        of(source, 100)


# ---- what a group sees

GROUP = ("layers.0", "layers.2", "layers.3")


def seen_by(group, slots, turns=1, num_tokens=8 * 32, seed=0):
    """(place in the text, layer) of every token that a group sees, batch by batch of every turn."""
    source = SyntheticSource(num_rows=8)
    rows_LND = source.read(list(range(8)))
    batches = []
    for _, batch in ShuffledStream(source, num_tokens, slots, 64, 128, seed).batches():
        for turn in range(turns):
            x_ND, layers_N = batch.read(group, turn)
            names = [group[layer] for layer in layers_N.tolist()]
            layers = [source.hookpoints.index(name) for name in names]
            places = [
                (rows_LND[layer] == x_D).all(-1).nonzero().item() for layer, x_D in zip(layers, x_ND, strict=True)
            ]
            batches.append(list(zip(places, names, strict=True)))
    return batches


def test_a_group_sees_each_token_once_at_a_layer_drawn_for_it():
    pairs = [pair for batch in seen_by(GROUP, BufferLayout.of([GROUP], every_layer=False)) for pair in batch]
    assert sorted(place for place, _ in pairs) == list(range(256))
    counts = Counter(name for _, name in pairs)
    assert set(counts) == set(GROUP)
    assert all(50 < count < 120 for count in counts.values())


def test_what_a_group_sees_does_not_depend_on_what_else_is_kept():
    alone = seen_by(GROUP, BufferLayout.of([GROUP], every_layer=False))
    assert alone == seen_by(GROUP, BufferLayout(SyntheticSource().hookpoints))
    assert alone == seen_by(GROUP, BufferLayout.of([("layers.1",), ("layers.0",), GROUP], every_layer=False))
    assert alone != seen_by(GROUP, BufferLayout.of([GROUP], every_layer=False), seed=1)


def test_over_as_many_turns_as_it_has_layers_a_group_sees_each_token_at_each_of_them_once():
    batches = seen_by(GROUP, BufferLayout.of([GROUP], every_layer=True), turns=3)
    pairs = [pair for batch in batches for pair in batch]
    assert sorted(pairs) == sorted((place, name) for place in range(256) for name in GROUP)
    assert sum(len({place for place, _ in batch}) == len(batch) for batch in batches) == len(batches)
    first, second = ({place for place, _ in batch} for batch in batches[:2])
    assert len(first & second) < 0.7 * len(first)


def test_the_first_turn_is_what_a_group_sees_that_takes_one_layer_of_each_token():
    one, every = (BufferLayout.of([GROUP], every_layer=every_layer) for every_layer in (False, True))
    assert seen_by(GROUP, every) == seen_by(GROUP, one)


def test_lanes_are_kept_only_for_what_is_trained_on():
    pair = ("layers.1", "layers.2")
    assert len(BufferLayout.of([GROUP, pair], every_layer=False)) == 2
    assert len(BufferLayout.of([GROUP, pair], every_layer=True)) == 4
    singles = [(f"layers.{layer}",) for layer in range(4)]
    assert BufferLayout.of([*singles, GROUP, pair], every_layer=False) == BufferLayout(
        tuple(f"layers.{layer}" for layer in range(4))
    )


def test_hookpoints_that_are_no_longer_needed_are_no_longer_read():
    source, reads = SyntheticSource(num_rows=16), []
    narrowed = source.narrowed
    source.narrowed = lambda hookpoints: reads.append(hookpoints) or narrowed(hookpoints)
    needed = [list(source.hookpoints), ["layers.1"]]
    stream = ShuffledStream(source, 256, BufferLayout(source.hookpoints), 64, 128, 0, needed=lambda: needed.pop(0))
    narrow = [batch.read(("layers.1",))[0] for _, batch in stream.batches()]
    assert reads == [("layers.1",)]
    stream = ShuffledStream(SyntheticSource(num_rows=16), 256, BufferLayout(source.hookpoints), 64, 128, 0)
    assert all(map(torch.equal, narrow, [batch.read(("layers.1",))[0] for _, batch in stream.batches()]))
