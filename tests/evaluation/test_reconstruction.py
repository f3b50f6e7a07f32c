import math

import pytest
import torch
from evaluation_cases import (
    D_MODEL,
    all_activations,
    identity_suite,
    make_rows,
    make_source,
    mean_suite,
    random_suite,
)

from groupsae.activations.source import SyntheticSource
from groupsae.errors import NumericalError, TextError
from groupsae.evaluation.density import DENSITY_EDGES
from groupsae.evaluation.reconstruction import evaluate_reconstruction, evaluate_reconstructions
from groupsae.metrics import RECONSTRUCTION
from groupsae.partition import Partition
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.text.tokens import TokenRows

HOOKPOINTS = ("layers.0", "layers.1", "layers.2")
GROUPS = (("layers.0", "layers.2"), ("layers.1",))


def synthetic(batch_rows=8, unit=1.0, num_rows=20):
    source = SyntheticSource(num_layers=3, d_model=D_MODEL, num_rows=num_rows, row_tokens=9)
    source.batch_rows = batch_rows
    read = source.read
    source.read = lambda rows: unit * read(rows)  # read_positions reads through it
    return source


def naive(suite, source):
    """FVU, cosine, L0 and firing of each hookpoint over all tokens, by the formulas, in float64."""
    results = {}
    for index, hookpoint in enumerate(source.hookpoints):
        x_ND = source.read(list(range(source.num_rows)))[index]
        latents_NS = suite[hookpoint].encode(x_ND)
        x_hat_ND, x_ND = suite[hookpoint](x_ND.float()).double(), x_ND.double()
        results[hookpoint] = {
            "fvu": ((x_ND - x_hat_ND) ** 2).sum() / ((x_ND - x_ND.mean(0)) ** 2).sum(),
            "cosine": ((x_ND * x_hat_ND).sum(1) / (x_ND.norm(dim=1) * x_hat_ND.norm(dim=1))).mean(),
            "l0": (latents_NS > 0).sum(1).double().mean(),
            "fired": (latents_NS > 0).any(0),
        }
    return results


def test_fvu_cosine_and_l0_equal_an_independent_float64_computation():
    source, suite = synthetic(), random_suite(groups=GROUPS)
    found, expected = evaluate_reconstruction(suite, source, 10**6), naive(suite, source)
    for hookpoint in HOOKPOINTS:
        for metric in ("fvu", "cosine", "l0"):
            value = expected[hookpoint][metric].item()
            assert getattr(found[hookpoint], metric) == pytest.approx(value, rel=1e-5), metric


def test_a_latent_is_dead_if_it_fires_at_no_hookpoint_and_silent_if_not_at_this_one():
    source, suite = synthetic(num_rows=3), random_suite(groups=GROUPS, d_sae=400, k=1)
    found, expected = evaluate_reconstruction(suite, source, 10**6), naive(suite, source)
    fired_pair = expected["layers.0"]["fired"] | expected["layers.2"]["fired"]
    for hookpoint, anywhere in (("layers.0", fired_pair), ("layers.2", fired_pair), ("layers.1", None)):
        here = expected[hookpoint]["fired"]
        anywhere = here if anywhere is None else anywhere
        assert found[hookpoint].silent_share == pytest.approx(1 - here.double().mean().item())
        assert found[hookpoint].dead_share == pytest.approx(1 - anywhere.double().mean().item())
    assert 0 < found["layers.0"].dead_share < found["layers.0"].silent_share < 1


def as_numbers(results):
    rows = [[getattr(result, name) for name in RECONSTRUCTION] for result in results.values()]
    ends = [end for result in results.values() for interval in result.intervals.values() for end in interval]
    return [*(value for row in rows for value in row), *ends]


@pytest.mark.parametrize("batch_rows", [1, 4, 7])
@pytest.mark.parametrize("num_tokens", [10**6, 100])
def test_metrics_do_not_depend_on_how_rows_are_batched(batch_rows, num_tokens):
    suite = random_suite(groups=GROUPS)
    found = evaluate_reconstruction(suite, synthetic(batch_rows), num_tokens)
    assert as_numbers(found) == pytest.approx(
        as_numbers(evaluate_reconstruction(suite, synthetic(), num_tokens)), rel=1e-6
    )


@pytest.mark.parametrize("unit", [1000.0, 1e-3])
def test_metrics_do_not_depend_on_the_unit_of_activations(unit):
    suite = random_suite(groups=GROUPS)
    scales = Scales(suite.scales.hookpoints, suite.scales.scale_L / unit, suite.scales.center_LD * unit)
    found = evaluate_reconstruction(Suite(suite.partition, suite.saes, scales), synthetic(unit=unit), 10**6)
    expected = evaluate_reconstruction(suite, synthetic(), 10**6)
    assert as_numbers(found) == pytest.approx(as_numbers(expected), rel=1e-4)


def test_an_sae_that_loses_nothing_has_no_unexplained_variance():
    for result in evaluate_reconstruction(identity_suite(HOOKPOINTS), synthetic(), 10**6).values():
        assert 0 <= result.fvu < 1e-10
        assert result.cosine == pytest.approx(1)
        assert result.l0 == D_MODEL


def test_an_sae_that_gives_the_mean_explains_nothing():
    source = synthetic()
    for result in evaluate_reconstruction(mean_suite(source), source, 10**6).values():
        assert result.fvu == pytest.approx(1, abs=1e-5)
        assert result.l0 == 0
        assert result.dead_share == result.silent_share == 1


def test_a_mean_far_larger_than_what_varies_does_not_spoil_fvu():
    source = synthetic()
    read = source.read
    source.read = lambda rows: read(rows) + 300
    for result in evaluate_reconstruction(mean_suite(source), source, 10**6).values():
        assert result.fvu == pytest.approx(1, rel=1e-3)


def test_all_suites_see_the_same_tokens_in_one_pass():
    source = synthetic()
    reads, read = [], source.read
    source.read = lambda rows: reads.extend(rows) or read(rows)
    suites = {"one": random_suite(groups=GROUPS), "other": random_suite(HOOKPOINTS, seed=9)}
    together = evaluate_reconstructions(suites, source, 10**6).suites
    assert sorted(reads) == sorted([*range(20)] * 2), "once for the means"
    for name, suite in suites.items():
        assert together[name] == evaluate_reconstruction(suite, synthetic(), 10**6)


def count_encodings(monkeypatch):
    from groupsae.saes.topk import TopKSAE

    calls, encode = [], TopKSAE.encode_sparse
    monkeypatch.setattr(TopKSAE, "encode_sparse", lambda self, z_ND: calls.append(len(z_ND)) or encode(self, z_ND))
    return calls


def copy_of(suite):
    return random_suite(suite.partition.hookpoints, suite.partition.groups)


@pytest.mark.parametrize("again", [lambda suite: suite, copy_of], ids=["same-object", "equal-weights"])
def test_an_sae_that_suites_share_is_evaluated_once(monkeypatch, again):
    suite = random_suite(groups=GROUPS)
    calls = count_encodings(monkeypatch)
    found = evaluate_reconstructions({"one": suite, "other": again(suite)}, synthetic(batch_rows=20), 10**6).suites
    assert len(calls) == 3
    assert found["one"] == found["other"]


def test_suites_of_equal_groups_and_different_weights_are_told_apart():
    suites = {"one": random_suite(groups=GROUPS, seed=0), "other": random_suite(groups=GROUPS, seed=5)}
    found = evaluate_reconstructions(suites, synthetic(), 10**6).suites
    for name, suite in suites.items():
        assert found[name] == evaluate_reconstruction(suite, synthetic(), 10**6)
    assert found["one"] != found["other"]


def test_suites_that_differ_in_weights_alone_are_told_apart():
    suite = random_suite(groups=GROUPS)
    suites = {"one": suite, "other": Suite(suite.partition, random_suite(groups=GROUPS, seed=5).saes, suite.scales)}
    found = evaluate_reconstructions(suites, synthetic(), 10**6).suites
    assert found["one"]["layers.0"].fvu != found["other"]["layers.0"].fvu


def test_suites_that_differ_in_scale_alone_are_told_apart():
    suite = random_suite(groups=GROUPS)
    scales = Scales(suite.scales.hookpoints, suite.scales.scale_L * 3, suite.scales.center_LD)
    suites = {"one": suite, "other": Suite(suite.partition, suite.saes, scales)}
    found = evaluate_reconstructions(suites, synthetic(), 10**6).suites
    assert found["one"]["layers.0"].fvu != found["other"]["layers.0"].fvu


def test_a_suite_may_serve_fewer_hookpoints_than_the_source_reads():
    suite = random_suite(("layers.2",))
    found = evaluate_reconstruction(suite, synthetic(), 10**6)
    expected = naive_of_one(suite)
    assert list(found) == ["layers.2"]
    assert found["layers.2"].fvu == pytest.approx(expected, rel=1e-5)


def naive_of_one(suite):
    x_ND = synthetic().read(list(range(20)))[2]
    return ((x_ND - suite["layers.2"](x_ND)) ** 2).sum().item() / ((x_ND - x_ND.mean(0)) ** 2).sum().item()


def test_tokens_asked_for_are_rounded_up_to_whole_rows():
    seen = []
    evaluate_reconstructions({"a": random_suite(groups=GROUPS)}, synthetic(), 100, progress=seen.append)
    assert sum(seen) == 108


def test_special_positions_do_not_count():
    source = make_source(rows=make_rows(special=True))
    suite = random_suite()
    expected = naive(suite, source)
    assert all_activations(source).shape[1] < 10 * 12
    for hookpoint, result in evaluate_reconstruction(suite, source, 10**6).items():
        assert result.fvu == pytest.approx(expected[hookpoint]["fvu"].item(), rel=1e-5)


@pytest.mark.parametrize("ids_RT", [make_rows().ids_RT * 0, make_rows().ids_RT[:0]], ids=["all special", "no rows"])
def test_without_a_token_to_evaluate_on_it_is_the_text_that_is_at_fault(ids_RT):
    source = make_source(rows=TokenRows(ids_RT=ids_RT, special_ids=(0,)))
    with pytest.raises(TextError, match="No held-out token"):
        evaluate_reconstruction(random_suite(), source, 100)


def test_activations_that_do_not_vary_have_no_variance_to_explain():
    source = synthetic()
    read = source.read
    source.read = lambda rows: read([0])[:, :1].expand(-1, 9 * len(rows), -1)
    with pytest.raises(NumericalError, match=r"layers\.0.*more tokens"):
        evaluate_reconstruction(random_suite(groups=GROUPS), source, 100)


def test_evaluation_needs_no_gradients_and_leaves_weights_alone():
    suite = random_suite(groups=GROUPS)
    before = {name: sae.W_dec.clone() for name, sae in suite.saes.items()}
    for sae in suite.saes.values():
        sae.requires_grad_(True)
    evaluate_reconstruction(suite, synthetic(), 100)
    for name, sae in suite.saes.items():
        assert sae.W_dec.grad is None
        assert torch.equal(sae.W_dec, before[name])


def test_every_metric_has_a_unit():
    found = evaluate_reconstruction(random_suite(groups=GROUPS), synthetic(), 100)
    assert set(RECONSTRUCTION) == set(vars(found["layers.0"])) - {"intervals", "estimates", "density"}


def test_partitions_of_the_same_layers_may_be_compared():
    suites = {
        "baseline": random_suite(HOOKPOINTS),
        "groups": Suite(
            Partition(GROUPS),
            {
                "layers.0+2": random_suite(groups=GROUPS, seed=3).saes["layers.0+2"],
                "layers.1": random_suite(HOOKPOINTS).saes["layers.1"],
            },
            random_suite(HOOKPOINTS).scales,
        ),
    }
    found = evaluate_reconstructions(suites, synthetic(), 10**6).suites
    assert found["baseline"]["layers.1"] == found["groups"]["layers.1"]
    assert found["baseline"]["layers.0"] != found["groups"]["layers.0"]


# ---- further measures, scopes, dead dictionaries


def test_further_measures_equal_their_formulas():
    source, suite = synthetic(), random_suite(groups=GROUPS)
    for index, (hookpoint, found) in enumerate(evaluate_reconstruction(suite, source, 10**6).items()):
        x_ND = source.read(list(range(20)))[index].double()
        f_NS = suite[hookpoint].encode(x_ND.float()).double()
        y_ND = suite[hookpoint](x_ND.float()).double()
        error_N, spread_N = (x_ND - y_ND).square().sum(1), (x_ND - x_ND.mean(0)).square().sum(1)
        assert found.explained_variance_per_token == pytest.approx((1 - error_N / spread_N).mean().item(), rel=1e-5)
        assert found.l1 == pytest.approx(f_NS.sum(1).mean().item(), rel=1e-5)
        assert found.l2_ratio == pytest.approx((y_ND.norm(dim=1) / x_ND.norm(dim=1)).mean().item(), rel=1e-5)
        bias = y_ND.square().sum() / (x_ND * y_ND).sum()
        assert found.relative_reconstruction_bias == pytest.approx(bias.item(), rel=1e-5)
        density_S = (f_NS > 0).double().mean(0)
        assert found.dense_share == (density_S > 0.1).double().mean().item()
        assert sum(found.density) == (density_S > 0).sum().item()
        for low, high, count in zip(DENSITY_EDGES, DENSITY_EDGES[1:], found.density, strict=False):
            inside = (density_S >= low) & ((density_S < high) | (high == 1))
            assert count == inside.sum().item()


@pytest.mark.parametrize("skip_special", [True, False])
def test_the_other_scope_is_what_a_source_of_the_other_choice_finds(skip_special):
    rows, suite = make_rows(special=True), random_suite()
    one, other = (
        evaluate_reconstructions({"a": suite}, make_source(rows=rows, skip_special=skip), 10**6)
        for skip in (skip_special, not skip_special)
    )
    assert one.other_scope.scope == other.scope != one.scope
    assert one.other_scope.num_tokens == other.num_tokens != one.num_tokens
    assert as_numbers(one.other_scope.suites["a"]) == pytest.approx(as_numbers(other.suites["a"]), rel=1e-6)
    assert one.other_scope.suites["a"]["layers.0"].density == other.suites["a"]["layers.0"].density


def test_a_scope_without_a_token_is_left_out():
    source = make_source(rows=TokenRows(ids_RT=make_rows().ids_RT * 0, special_ids=(0,)), skip_special=False)
    found = evaluate_reconstructions({"a": random_suite()}, source, 10**6)
    assert found.scope == "all positions"
    assert found.other_scope is None


def test_a_dictionary_that_gives_zero_has_stated_values():
    source, suite = synthetic(), random_suite(groups=GROUPS)
    zero = Scales(suite.scales.hookpoints, suite.scales.scale_L, torch.zeros_like(suite.scales.center_LD))
    for sae in suite.saes.values():
        sae.b_enc.fill_(-1e6)
        sae.b_dec.zero_()
    for result in evaluate_reconstruction(Suite(suite.partition, suite.saes, zero), source, 10**6).values():
        assert (result.cosine, result.l0, result.l1, result.l2_ratio) == (0, 0, 0, 0)
        assert result.relative_reconstruction_bias == 0
        assert (result.dead_share, result.silent_share, result.dense_share, sum(result.density)) == (1, 1, 0, 0)
        assert result.fvu >= 1 and result.explained_variance_per_token <= 0
        assert all(math.isfinite(number) for number in as_numbers({"": result}))


def test_a_reconstruction_that_points_away_has_no_bias():
    source, suite = synthetic(), identity_suite(HOOKPOINTS)
    zero = Scales(suite.scales.hookpoints, suite.scales.scale_L, torch.zeros_like(suite.scales.center_LD))
    for sae in suite.saes.values():
        sae.W_dec.neg_()
    for result in evaluate_reconstruction(Suite(suite.partition, suite.saes, zero), source, 10**6).values():
        assert result.relative_reconstruction_bias is None
        assert result.cosine == pytest.approx(-1)
