import json
from dataclasses import asdict

import pytest
from evaluation_cases import D_MODEL, identity_suite, make_rows, make_source, random_suite

from groupsae.activations.source import SyntheticSource
from groupsae.errors import TextError
from groupsae.evaluation.dictionaries import mmcs
from groupsae.evaluation.similarity import Dictionary, evaluate_similarity
from groupsae.metrics import SIMILARITY
from groupsae.partition import Partition
from groupsae.saes.suite import Suite

HOOKPOINTS = ("layers.0", "layers.1", "layers.2")
GROUPS = (("layers.0", "layers.2"), ("layers.1",))


def source(num_rows=20):
    return SyntheticSource(num_layers=3, d_model=D_MODEL, num_rows=num_rows, row_tokens=9)


def suites():
    """Groups, and a baseline that has the SAE of layers.1 in common with them."""
    baseline, groups = random_suite(HOOKPOINTS), random_suite(groups=GROUPS, seed=7)
    saes = {**groups.saes, "layers.1": baseline.saes["layers.1"]}
    return {"baseline": baseline, "groups": Suite(Partition(GROUPS), saes, baseline.scales)}


@pytest.fixture(scope="module")
def found():
    return evaluate_similarity(suites(), source(), 150)


def test_every_dictionary_stands_once(found):
    names = [("baseline", name) for name in HOOKPOINTS] + [("groups", "layers.0+2")]
    assert found.dictionaries == tuple(Dictionary(*name) for name in names)


def test_the_matrix_holds_the_mmcs_of_every_two_dictionaries_both_ways(found):
    saes = [suites()[one.suite].saes[one.group] for one in found.dictionaries]
    for a, one in enumerate(saes):
        for b, other in enumerate(saes):
            assert found.mmcs[a][b] == pytest.approx(mmcs(one.W_dec, other.W_dec), rel=1e-9)
        assert found.mmcs[a][a] == pytest.approx(1)


def naive_concordance(one, other, x_ND):
    fired = [bound.encode(x_ND) > 0 for bound in (one, other)]
    both = fired[0].double().T @ fired[1].double()
    either = fired[0].sum(0)[:, None] + fired[1].sum(0)[None] - both
    jaccard = (both / either).nan_to_num()
    return [
        (best[some].mean().item())
        for best, some in ((jaccard.amax(1), fired[0].any(0)), (jaccard.amax(0), fired[1].any(0)))
    ]


def test_saes_of_one_hookpoint_are_compared_on_the_same_tokens(found):
    assert [(one.hookpoint, one.one.suite, one.other.suite) for one in found.concordance] == [
        ("layers.0", "baseline", "groups"),
        ("layers.2", "baseline", "groups"),
    ], "the SAE of layers.1 is the same in both suites"
    whole = evaluate_similarity(suites(), source(), 10**6)
    x_LND = source().read(list(range(20)))
    for one in whole.concordance:
        bounds = [suites()[name][one.hookpoint] for name in ("baseline", "groups")]
        expected = naive_concordance(*bounds, x_LND[HOOKPOINTS.index(one.hookpoint)])
        assert [one.one_in_other, one.other_in_one] == pytest.approx(expected)


def test_groups_of_several_layers_spread(found):
    assert {name: list(groups) for name, groups in found.spreading.items()} == {"groups": ["layers.0+2"]}
    one = found.spreading["groups"]["layers.0+2"]
    assert one.layers == ("layers.0", "layers.2") and 0 < one.entropy <= 1
    assert one.firing_share == pytest.approx((0.5, 0.5), abs=0.05), "TopK fires as often at every layer"


def test_suites_of_the_same_groups_are_matched_group_by_group():
    one, again = random_suite(groups=GROUPS), random_suite(groups=GROUPS, seed=9)
    shared = Suite(again.partition, {**again.saes, "layers.1": one.saes["layers.1"]}, one.scales)
    (only,) = evaluate_similarity({"one": one, "again": shared}, source(), 20).stability
    assert (only.group, only.one, only.other) == ("layers.0+2", "one", "again")
    assert only.matching.pairs == 24 and only.matching.method == "assignment"


def test_results_are_json_without_nan_and_every_number_has_a_unit(found):
    json.dumps(asdict(found), allow_nan=False)
    parts = [found.concordance[0], found.spreading["groups"]["layers.0+2"]]
    stated = {"hookpoint", "one", "other", "layers"}
    assert {name for part in parts for name in vars(part)} - stated <= set(SIMILARITY)


def test_the_result_does_not_depend_on_how_rows_are_batched(found):
    small = source()
    small.batch_rows = 3
    again = evaluate_similarity(suites(), small, 150)
    assert again.num_tokens == found.num_tokens == 150
    assert again.concordance == found.concordance and again.spreading == found.spreading


def test_firing_sets_hold_the_sample_only(found):
    sampled = evaluate_similarity(suites(), source(), 150, sample_tokens=40)
    assert (found.sample_tokens, sampled.sample_tokens) == (150, 40)
    assert sampled.spreading == found.spreading
    assert sampled.concordance == evaluate_similarity(suites(), source(), 40).concordance


def test_dead_dictionaries_give_stated_values():
    dead = random_suite(groups=GROUPS)
    for sae in dead.saes.values():
        sae.b_enc.fill_(-1e6)
    found = evaluate_similarity({"dead": dead, "alive": random_suite(HOOKPOINTS, seed=4)}, source(), 100)
    json.dumps(asdict(found), allow_nan=False)
    for one in found.concordance:
        assert one.one_in_other is None and one.silent_one == 24 and one.other_in_one == 0
    assert found.spreading["dead"]["layers.0+2"].entropy is None


def test_saes_that_lose_nothing_are_alike_at_every_layer():
    found = evaluate_similarity({"a": identity_suite(HOOKPOINTS)}, source(), 50)
    assert len(found.dictionaries) == 3 and not found.concordance and not found.stability and not found.spreading
    assert all(value == pytest.approx(1) for row in found.mmcs for value in row)


def test_a_language_models_activations_are_compared_too():
    one, other = random_suite(), random_suite(seed=5)
    seen = []
    found = evaluate_similarity({"one": one, "other": other}, make_source(), 60, progress=seen.append)
    assert sum(seen) == found.num_tokens == 60 and len(found.concordance) == len(found.stability) == 2


def test_without_a_token_it_is_the_text_that_is_at_fault():
    rows = make_rows()
    empty = type(rows)(ids_RT=rows.ids_RT[:0], special_ids=(0,))
    with pytest.raises(TextError, match="No held-out token"):
        evaluate_similarity({"one": random_suite()}, make_source(rows=empty), 60)
