"""What several SAE settings cost side by side, and in how many passes they are trained."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import counted
from transformers import GPTNeoXConfig

from groupsae.partition import Partition
from groupsae.planning.memory import Available, Footprint, predict_memory
from groupsae.planning.pricing import Pricing, Rates
from groupsae.planning.sweep import fewest_passes, in_turn, memory_together, price_together

MODEL = counted(
    GPTNeoXConfig(
        hidden_size=64, num_hidden_layers=5, num_attention_heads=4, intermediate_size=256, max_position_embeddings=128
    )
)
GROUPS = Partition((("layers.0", "layers.1"), ("layers.2",), ("layers.3",))).groups
RUN = Footprint(MODEL, 4, 1, 4096, 512, 4, 128, 8192, on_device=False)
PRICING = Pricing(RUN, 16, 1_000_000, 10_000, Rates(1e-4, 2e-2, 512))
SAE = 3 * (2 * 64 * 4096 + 4096 + 64) * 4 * len(GROUPS)
"""Bytes of weights and moments of one variant."""


def pricing(d_sae=4096, k=16, **options):
    return replace(PRICING, footprint=replace(RUN, d_sae=d_sae), k=k, **options)


def test_one_setting_costs_what_it_costs():
    assert price_together([PRICING], GROUPS) == PRICING.price(GROUPS)


def test_the_language_model_is_paid_once_and_steps_by_every_setting():
    parts = [pricing(k=k).price(GROUPS) for k in (8, 16, 32)]
    whole = price_together([pricing(k=k) for k in (8, 16, 32)], GROUPS)
    assert whole.ours.harvest == parts[0].ours.harvest
    assert whole.ours.training == sum(part.ours.training for part in parts)
    steps = len(GROUPS) * 1_000_000 / 512 * 2e-2
    assert whole.seconds == pytest.approx(parts[0].seconds + 2 * steps)


def test_without_rates_there_are_no_seconds():
    assert price_together([PRICING, pricing(k=8, rates=None)], GROUPS).seconds is None
    assert in_turn([PRICING.price(GROUPS), pricing(rates=None).price(GROUPS)]).seconds is None


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_memory_of_equal_settings_is_that_of_as_many_saes(copies):
    one = predict_memory(PRICING.footprint_of(GROUPS))
    many = replace(PRICING.footprint_of(GROUPS), num_saes=copies * len(GROUPS))
    assert memory_together([one] * copies) == predict_memory(many)


def test_passes_in_turn_read_the_model_each_time_and_keep_all_files():
    small, large = PRICING.price(GROUPS), pricing(8192).price(GROUPS)
    whole = in_turn([small, large])
    assert whole.ours.harvest == 2 * small.ours.harvest
    assert whole.memory.working == large.memory.working
    assert whole.memory.disk == small.memory.disk + large.memory.disk


def test_what_fits_takes_one_pass():
    assert fewest_passes([PRICING] * 4, GROUPS, Available()) == ((0, 1, 2, 3),)
    needed = memory_together([predict_memory(PRICING.footprint_of(GROUPS))] * 4).host
    assert fewest_passes([PRICING] * 4, GROUPS, Available(host=needed)) == ((0, 1, 2, 3),)
    assert len(fewest_passes([PRICING] * 4, GROUPS, Available(host=needed - 1))) == 2


def test_what_does_not_fit_alone_has_a_pass_of_its_own():
    assert fewest_passes([PRICING] * 3, GROUPS, Available(host=1)) == ((0,), (1,), (2,))


@given(st.lists(st.sampled_from([1024, 2048, 4096, 8192]), min_size=1, max_size=8), st.floats(0.5, 6))
@settings(max_examples=60, deadline=None)
def test_every_variant_is_in_one_pass_that_fits_and_no_two_passes_could_be_one(widths, room):
    pricings = [pricing(width) for width in widths]
    memories = [predict_memory(each.footprint_of(GROUPS)) for each in pricings]
    free = int(max(memory.host for memory in memories) + room * SAE)
    passes = fewest_passes(pricings, GROUPS, Available(host=free))
    assert sorted(place for members in passes for place in members) == list(range(len(widths)))
    needed = [memory_together([memories[place] for place in members]).host for members in passes]
    assert max(needed) <= free
    for one in range(len(passes)):
        for other in range(one):
            both = [memories[place] for place in (*passes[one], *passes[other])]
            assert memory_together(both).host > free
