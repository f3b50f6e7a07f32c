"""The compute-optimal number of groups: one unit of cost, per token that each SAE sees."""

import pytest
from test_cost import NAMES, SMALL

from groupsae.estimate import Estimate
from groupsae.grouping.choose import equal
from groupsae.planning.memory import Footprint
from groupsae.planning.pricing import Pricing
from groupsae.recipes.plan import _compute_optimal, _cost
from groupsae.records.types.candidate import Candidate

NUM_TOKENS = 600_000


class FallingLaw:
    """FVU falls with the tokens and does not depend on the groups."""

    def predict(self, proxies, num_tokens):
        return Estimate(1 / num_tokens, 1 / num_tokens, 1 / num_tokens)


class KnownQuality:
    """What `_compute_optimal` asks of a pilot."""

    law = FallingLaw()

    def proxies(self, partition):
        return {}


def candidates(layers_per_token):
    run = Footprint(SMALL, 11, 1, 12288, 4096, 16, 1024, 65536)
    pricing = Pricing(run, 32, NUM_TOKENS, 0, layers_per_token=layers_per_token)
    rows = [equal(NAMES, count).groups for count in (1, 4, 11)]
    return [Candidate(method="equal", groups=groups, cost=_cost(pricing.price(groups))) for groups in rows]


@pytest.mark.parametrize("layers_per_token", [1, "all"])
def test_a_budget_of_exactly_one_run_buys_the_tokens_of_that_run(layers_per_token):
    for each in candidates(layers_per_token):
        best = _compute_optimal(KnownQuality(), [each], each.cost.own_flops)
        assert best.num_tokens == pytest.approx(NUM_TOKENS, abs=1)


@pytest.mark.parametrize("layers_per_token", [1, "all"])
def test_the_cheapest_suite_gets_the_most_tokens_from_a_budget(layers_per_token):
    rows = candidates(layers_per_token)
    cheapest = min(rows, key=lambda each: each.cost.own_flops)
    assert _compute_optimal(KnownQuality(), rows, rows[0].cost.own_flops).num_groups == cheapest.num_groups


@pytest.mark.parametrize("layers_per_token", [1, "all"])
def test_flops_per_sae_token_times_the_tokens_of_each_sae_are_all_flops(layers_per_token):
    for each in candidates(layers_per_token):
        assert each.own_mflop * 1e6 * NUM_TOKENS == pytest.approx(each.cost.own_flops)
        assert each.published_mflop * 1e6 * NUM_TOKENS == pytest.approx(each.cost.published_flops)
