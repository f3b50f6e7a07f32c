import pytest
import torch
from tiny import tiny_model, tiny_rows

from groupsae.activations.harvest import Harvester
from groupsae.activations.source import SyntheticSource, hash_seed, row_order, stream


def every(source, num_tokens, seed=0):
    return torch.cat(list(stream(source, num_tokens, seed)), dim=1)


def test_an_epoch_reads_every_row_once():
    assert sorted(row_order(50, seed=1, epoch=2).tolist()) == list(range(50))


def test_the_order_of_rows_depends_on_seed_and_epoch_and_nothing_else():
    torch.manual_seed(1)
    first = row_order(50, seed=1, epoch=0)
    torch.manual_seed(2)
    assert torch.equal(first, row_order(50, seed=1, epoch=0))
    assert not torch.equal(first, row_order(50, seed=2, epoch=0))
    assert not torch.equal(first, row_order(50, seed=1, epoch=1))


def test_seeds_of_different_choices_differ():
    seeds = {hash_seed(seed, what, step) for seed in range(4) for what in ("rows", "layers") for step in range(4)}
    assert len(seeds) == 32
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("num_tokens", [1, 31, 256, 257, 1000])
def test_a_stream_gives_exactly_the_tokens_asked_for(num_tokens):
    assert every(SyntheticSource(num_rows=64), num_tokens).shape == (4, num_tokens, 16)


def test_a_stream_ends_when_all_rows_are_read():
    source = SyntheticSource(num_rows=5, row_tokens=8)
    assert every(source, 10**9).shape[1] == 40


def test_a_longer_stream_begins_with_the_shorter_one():
    source = SyntheticSource()
    assert torch.equal(every(source, 1000)[:, :300], every(source, 300))


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    source = SyntheticSource()
    assert torch.equal(every(source, 300, seed=4), every(source, 300, seed=4))
    assert not torch.equal(every(source, 300, seed=4), every(source, 300, seed=5))


def test_a_batch_of_special_tokens_only_is_passed_over():
    rows = tiny_rows(rows=6, special_ids=tuple(range(256)))
    assert list(stream(Harvester(tiny_model(), rows, ["layers.0"], batch_rows=2), 100, 0)) == []


def test_synthetic_layers_that_are_near_are_more_alike_than_layers_that_are_far():
    x_LND = every(SyntheticSource(num_layers=4), 2000)
    x_LND = x_LND - x_LND.mean(1, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(x_LND[:1], x_LND, dim=-1).mean(1)
    assert cosine.tolist() == sorted(cosine.tolist(), reverse=True)
    assert cosine[0] - cosine[3] > 0.1
