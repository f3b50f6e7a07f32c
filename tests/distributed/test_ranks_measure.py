"""Statistics, distances and evaluation by several ranks give the bits that one process gives."""

import dataclasses

import numpy as np
import pytest
import torch
from evaluation_cases import make_source, random_suite
from rank_processes import run_ranks

from groupsae.activations.source import SyntheticSource, stream, worked_stream
from groupsae.activations.stats import CenteringSource, measure_stats, measure_stats_at
from groupsae.distributed.ranks import ALONE
from groupsae.evaluation.losses import evaluate_losses
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.grouping.measure import measure_distances

SIZES = [2, 3]


def source(num_rows=41):
    made = SyntheticSource(num_layers=3, d_model=16, num_rows=num_rows, row_tokens=16)
    made.batch_rows = 3
    return made


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("num_tokens", [1, 48, 100, 301, 5000])
def test_results_come_in_the_order_of_the_stream_with_no_batch_across_a_place(size, num_tokens):
    def work(ranks):
        sums = lambda x_LND, _: [x_LND.double().sum(1), torch.tensor([x_LND.shape[1]])]  # noqa: E731
        return list(worked_stream(source(), num_tokens, 0, sums, places=[50, 100, 300], ranks=ranks))

    expected = work(ALONE)
    assert sum(tokens for tokens, _ in expected) == min(num_tokens, 41 * 16)
    assert torch.allclose(
        sum(one for _, (one, _) in expected), sum(x.double().sum(1) for x in stream(source(), num_tokens, 0))
    )
    for found in run_ranks(size, work):
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
        for (_, one), (_, other) in zip(found, expected, strict=True):
            assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("size", SIZES)
def test_statistics_have_the_same_bits(size):
    def work(ranks):
        stats = measure_stats_at(source(), (100, 333), 0, ranks=ranks)
        centered = CenteringSource(source(), stats[333], 0, ranks).finish()
        return [*stats.values(), centered, measure_stats(source(), 10**6, 0, centered=True, ranks=ranks)]

    expected = work(ALONE)
    for found in run_ranks(size, work):
        for one, other in zip(found, expected, strict=True):
            assert one.count == other.count and one.hookpoints == other.hookpoints
            for name in ("mean_LD", "mean_norm_L", "centered_norm_L"):
                mine, its = getattr(one, name), getattr(other, name)
                assert mine is its is None or torch.equal(mine, its), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("metric", "until"), [("angular", None), ("angular", 0.02), ("cka", None), ("svcca", None)])
def test_distances_have_the_same_bits(size, metric, until):
    def work(ranks):
        found = measure_distances(metric, source(), 600, seed=0, until_stderr=until, ranks=ranks)
        return found.matrix, found.num_tokens, found.standard_error

    expected = work(ALONE)
    if until:
        assert expected[1] < 600
    for found in run_ranks(size, work):
        assert np.array_equal(found[0], expected[0]) and found[1] == expected[1]
        assert found[2] is expected[2] is None or np.array_equal(found[2], expected[2])


@pytest.mark.parametrize("evaluate", [evaluate_reconstructions, evaluate_losses])
def test_evaluations_are_the_same_to_the_bit(evaluate):
    suites = {"one": random_suite(), "other": random_suite(groups=(("layers.0", "layers.1"),), seed=5)}
    read = make_source(batch_rows=3)

    def work(ranks):
        seen = []
        found = evaluate(suites, read, 10**6, progress=seen.append, ranks=ranks)
        return dataclasses.asdict(found), sum(seen)

    expected = work(ALONE)
    assert expected[0]["other_scope"]["num_tokens"] > expected[0]["num_tokens"] > 50
    assert expected[1] == read.num_rows * read.row_tokens
    for size in (2, 5):
        for found in run_ranks(size, work):
            assert same(found, expected)


def same(one, other):
    """Whether two nests of numbers have the same bits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one == other
