import csv
from dataclasses import replace
from pathlib import Path

import pytest
from planning_cases import counted
from transformers import GPTNeoXConfig

from groupsae.errors import ConfigError
from groupsae.partition import Partition
from groupsae.planning.architecture import Block
from groupsae.planning.cost import paper_cost, run_cost, sparse_step_flops

REFERENCE = Path(__file__).parents[1] / "reference"


def neox(layers, width, heads):
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "vocab_size": 50304}
    return counted(GPTNeoXConfig(intermediate_size=4 * width, max_position_embeddings=2048, **sizes))


PYTHIA = {"pythia-160m": neox(12, 768, 12), "pythia-410m": neox(24, 1024, 16), "pythia-1b": neox(16, 2048, 8)}
NAMES = tuple(f"layers.{layer}" for layer in range(11))
SMALL = PYTHIA["pythia-160m"]
BLOCK_FLOPS = 24 * 768**2 + 4 * 1024 * 768


def mflop_per_token(model, groups):
    architecture = PYTHIA[model]
    return paper_cost(architecture, groups, 16 * architecture.d_model).per_sae_token / 1e6


@pytest.mark.parametrize(
    ("model", "harvest", "step", "baseline", "groups", "grouped", "saving"),
    [
        ("pythia-160m", 207.62, 94.37, 1245.7, 6, 773.8, 37.9),
        ("pythia-410m", 704.64, 167.77, 4563.4, 9, 2214.6, 51.5),
        ("pythia-1b", 1744.83, 671.09, 11811.2, 6, 5771.4, 51.1),
    ],
)
def test_the_papers_formula_gives_the_published_costs(model, harvest, step, baseline, groups, grouped, saving):
    architecture = PYTHIA[model]
    cost = paper_cost(architecture, groups, 16 * architecture.d_model)
    assert round(cost.harvest / 1e6, 2) == harvest
    assert round(cost.training / groups / 1e6, 2) == step
    whole = mflop_per_token(model, architecture.num_layers - 1)
    assert round(whole, 1) == baseline
    assert round(cost.per_sae_token / 1e6, 1) == grouped
    assert round(100 * (1 - cost.per_sae_token / 1e6 / whole), 1) == saving


def test_the_papers_formula_gives_the_whole_published_table():
    rows = list(csv.DictReader((REFERENCE / "cost_by_G.csv").open()))
    assert len(rows) == 49
    for row in rows:
        architecture = PYTHIA[row["model"]]
        one = paper_cost(architecture, 1, 16 * architecture.d_model)
        # The table adds harvest and step after rounding each to 0.01.
        published = round(one.harvest / 1e6, 2) + int(row["G"]) * round(one.training / 1e6, 2)
        assert round(published, 2) == float(row["C_PFLOPs"])
        assert mflop_per_token(row["model"], int(row["G"])) == pytest.approx(published, abs=0.06)


def test_cost_is_in_proportion_to_tokens():
    one, many = (paper_cost(SMALL, 6, 12288, num_tokens=tokens) for tokens in (1, 1_000_000))
    assert many.total == 1_000_000 * one.total
    assert many.per_sae_token == one.per_sae_token


def test_a_sparse_step_is_hardly_more_than_the_encoders_product():
    assert sparse_step_flops(768, 12288, 128) == 2 * 768 * 12288 + 8 * 768 * 128
    assert sparse_step_flops(768, 12288, 128) / (2 * 768 * 12288) == pytest.approx(1.04, abs=0.005)


def test_sparse_steps_make_one_sae_per_layer_three_times_cheaper():
    groups = Partition.singletons(NAMES).groups
    ours = run_cost(SMALL, groups, sparse_step_flops(768, 12288, 128), 1, 1024)
    assert 2.9 < mflop_per_token("pythia-160m", 11) * 1e6 / ours.total < 3.1


def test_blocks_above_the_deepest_hookpoint_are_not_run():
    whole = run_cost(SMALL, Partition.singletons(NAMES).groups, 1, 1000, 1024)
    assert whole.harvest == 1000 * 11 * BLOCK_FLOPS
    assert run_cost(SMALL, [("layers.2.mlp",)], 1, 1000, 1024).harvest == 1000 * 3 * BLOCK_FLOPS


def test_every_layer_from_each_token_divides_the_text_by_the_size_of_the_group():
    one = run_cost(SMALL, [NAMES], 10, 1100, 1024)
    every = run_cost(SMALL, [NAMES], 10, 1100, 1024, layers_per_token="all")
    assert every.lm_tokens == one.lm_tokens / 11
    assert every.harvest == pytest.approx(one.harvest / 11)
    assert every.training == one.training == 11_000


def test_groups_that_have_enough_tokens_let_the_model_stop_earlier():
    groups = [("layers.0",), NAMES[1:6], NAMES[6:11]]
    cost = run_cost(SMALL, groups, 1, 1000, 1024, layers_per_token="all")
    assert cost.lm_tokens == 1000
    assert cost.harvest == pytest.approx((200 * 11 + 800 * 1) * BLOCK_FLOPS)


def test_blocks_that_differ_are_priced_one_by_one():
    blocks = tuple(Block(0, 100 * (index + 1), index) for index in range(3))
    model = replace(SMALL, blocks=blocks)
    assert model.forward_flops(10) == 100 + 200 + 300 + 10 * (0 + 1 + 2)
    assert run_cost(model, [("layers.1",)], 1, 5, 10).harvest == 5 * (300 + 10)


def test_a_group_that_two_partitions_share_is_trained_once():
    groups = [("layers.0",), ("layers.1",), ("layers.0",)]
    assert run_cost(SMALL, groups, 5, 10, 1024).training == 2 * 5 * 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_tokens": 0}, "num_tokens = 0"),
        ({"groups": []}, "no group"),
        ({"groups": [("layers.12",)]}, "above the model's 12 blocks"),
        ({"layers_per_token": 2}, "1 or 'all'"),
    ],
)
def test_an_impossible_run_has_no_cost(wrong, message):
    right = {"groups": [NAMES], "step_flops": 1, "num_tokens": 10, "context_length": 1024}
    with pytest.raises(ConfigError, match=message):
        run_cost(SMALL, **(right | wrong))


def test_no_groups_have_no_published_cost():
    with pytest.raises(ConfigError, match="num_groups = 0"):
        paper_cost(SMALL, 0, 12288)
