"""Groups and rows divided among ranks: laws of the division, and a search through small cases."""

import itertools
import math
import random
import subprocess
import sys

import pytest

from groupsae.errors import ConfigError, FitError
from groupsae.planning.cluster import assign, latent_slices

COSTS = [7.0, 5.0, 4.0, 3.0, 3.0, 2.0, 1.0]


def drawn(seed):
    """Costs of 1 to 40 groups, and a number of ranks up to 64."""
    rng = random.Random(seed)
    return [rng.uniform(0.1, 10) for _ in range(rng.randint(1, 40))], rng.randint(1, 64), rng.choice([0, 5, 200])


@pytest.mark.parametrize("seed", range(30))
def test_every_group_has_owners_and_every_row_a_reader(seed):
    costs, ranks, read = drawn(seed)
    plan = assign(costs, ranks, read_cost=read)
    assert len(plan.owners) == len(costs) and len(plan.rows) == ranks
    assert all(owners and list(owners) == sorted(set(owners)) for owners in plan.owners)
    assert math.isclose(sum(plan.rows), 1) and min(plan.rows) >= 0
    assert sum(plan.training) >= sum(costs) - 1e-9  # a cut costs extra, nothing is lost
    assert set(plan.readers_only) == {rank for rank in range(ranks) if not plan.groups_of(rank)}


@pytest.mark.parametrize("seed", range(10))
def test_ranks_that_read_finish_together_and_the_others_later(seed):
    costs, ranks, _ = drawn(seed)
    plan = assign(costs, ranks, read_cost=sum(costs))
    reading = [cost for cost, share in zip(plan.costs, plan.rows, strict=True) if share > 0]
    assert max(reading) - min(reading) < 1e-9 * max(reading)
    busy = [cost for cost, share in zip(plan.costs, plan.rows, strict=True) if share == 0]
    assert all(cost >= reading[0] - 1e-9 for cost in busy)


def test_longest_first_is_within_four_thirds_of_the_best_division():
    for ranks in (2, 3):
        best = min(
            max(sum(cost for cost, at in zip(COSTS, places, strict=True) if at == rank) for rank in range(ranks))
            for places in itertools.product(range(ranks), repeat=len(COSTS))
        )
        plan = assign(COSTS, ranks, may_cut=False)
        assert max(plan.training) <= (4 / 3 - 1 / (3 * ranks)) * best


def test_one_rank_owns_and_reads_everything():
    plan = assign(COSTS, 1, read_cost=3)
    assert plan.owners == ((0,),) * len(COSTS) and plan.rows == (1.0,) and plan.imbalance == 1


def test_a_group_alone_is_cut_over_all_ranks_where_nothing_is_read():
    assert assign([8.0], 4).owners == ((0, 1, 2, 3),)


def test_ranks_that_reading_keeps_busy_get_no_slice():
    plan = assign([8.0], 4, read_cost=24.0)
    assert plan.owners == ((0,),) and plan.rows == (0, 1 / 3, 1 / 3, 1 / 3)


def test_what_cannot_be_cut_leaves_ranks_that_only_read():
    plan = assign([4.0, 4.0], 4, read_cost=1.0, may_cut=False)
    assert plan.owners == ((0,), (1,)) and plan.readers_only == (2, 3) and plan.rows == (0, 0, 0.5, 0.5)


def test_a_group_too_large_for_a_rank_is_cut_as_far_as_it_fits():
    plan = assign([1.0, 1.0], 8, read_cost=100.0, group_bytes=[100, 10], rank_bytes=30)
    assert len(plan.owners[0]) == 4 and len(plan.owners[1]) == 1
    held = [
        sum(size / len(owners) for size, owners in zip((100, 10), plan.owners, strict=True) if rank in owners)
        for rank in range(8)
    ]
    assert max(held) <= 30


def test_slices_of_a_group_lie_on_one_node():
    plan = assign([1.0] * 6, 16, read_cost=1.0, ranks_per_node=4, group_bytes=[40.0] * 6, rank_bytes=35.0)
    assert all(len(owners) >= 2 and len({rank // 4 for rank in owners}) == 1 for owners in plan.owners)


def test_too_large_a_group_is_refused_with_its_size():
    with pytest.raises(FitError, match=r"Group 1 needs 5\.0 GiB.*2\.0 GiB"):
        assign([1, 1], 2, group_bytes=[1, 5 * 2**30], rank_bytes=2 * 2**30)
    with pytest.raises(FitError, match="cannot be cut"):
        assign([1, 1], 8, group_bytes=[1, 5 * 2**30], rank_bytes=2 * 2**30, may_cut=False)
    with pytest.raises(FitError, match="do not fit on 2 rank"):
        assign([1] * 5, 2, group_bytes=[2**30] * 5, rank_bytes=2 * 2**30)


def test_rows_are_whole_batches_and_sum():
    plan = assign(COSTS, 5, read_cost=20)
    for rows, batch in ((1000, 16), (1001, 16), (3, 16), (0, 4), (17, 1)):
        counts = plan.row_counts(rows, batch)
        assert sum(counts) == rows and min(counts) >= 0
        assert all(start % batch == 0 for start in itertools.accumulate(counts, initial=0) if start < rows)
    exact = plan.row_counts(100_000)
    assert max(abs(count - 100_000 * share) for count, share in zip(exact, plan.rows, strict=True)) <= 1


def test_slices_cover_the_latents():
    for latents, pieces in ((12, 4), (13, 4), (5, 5)):
        held = [latent for part in latent_slices(latents, pieces) for latent in range(latents)[part]]
        assert held == list(range(latents))
    with pytest.raises(ConfigError):
        latent_slices(3, 4)


@pytest.mark.parametrize(
    "arguments",
    [([], 2), ([1.0], 0), ([-1.0], 2), ([float("nan")], 2), ([float("inf")], 1)],
)
def test_impossible_numbers_are_refused(arguments):
    with pytest.raises(ConfigError):
        assign(*arguments)


def test_it_is_the_same_in_every_process_and_needs_no_torch():
    code = (
        "import sys; from groupsae.planning.cluster import assign; "
        f"print(assign({COSTS}, 11, read_cost=9.0, ranks_per_node=4)); assert 'torch' not in sys.modules"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == repr(assign(COSTS, 11, read_cost=9.0, ranks_per_node=4))
