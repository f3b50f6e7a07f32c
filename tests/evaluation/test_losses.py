import math

import pytest
import torch
from evaluation_cases import (
    BLOCKS,
    D_MODEL,
    LENGTH,
    VOCABULARY,
    all_activations,
    fluent_rows,
    identity_suite,
    make_model,
    make_rows,
    make_source,
    mean_suite,
    random_suite,
    spliced_forward,
)
from torch import nn
from torch.nn import functional as F

from groupsae.activations.harvest import Harvester
from groupsae.errors import TextError
from groupsae.evaluation import losses as losses_module
from groupsae.evaluation.losses import evaluate_losses
from groupsae.evaluation.splice import CleanPass
from groupsae.metrics import LOSSES
from groupsae.model_structure import base_model
from groupsae.text.tokens import TokenRows

KINDS = list(BLOCKS)


def naive(model, suite, hookpoint, rows, keep_special=False):
    """ce_clean, ce_zero, ce and kl of one hookpoint: whole forwards with hooks, one row at a time, float64."""
    sums, tokens, positions = torch.zeros(4, dtype=torch.float64), 0, 0
    for row in range(len(rows)):
        ids_BT = rows[[row]]
        keep_BT = torch.ones_like(ids_BT, dtype=torch.bool) if keep_special else ids_BT != 0

        def reconstruct(x_BTD, keep_BT=keep_BT):
            return torch.where(keep_BT[..., None], suite[hookpoint](x_BTD), x_BTD)

        kept, after = keep_BT[0, :-1], ids_BT[0, 1:]
        clean = model(ids_BT, use_cache=False).logits[0].double()
        zero = spliced_forward(model, hookpoint, ids_BT, torch.zeros_like)[0].double()
        spliced = spliced_forward(model, hookpoint, ids_BT, reconstruct)[0].double()
        for i, logits in enumerate((clean, zero, spliced)):
            sums[i] += F.cross_entropy(logits[:-1][kept], after[kept], reduction="sum")
        log_p, log_q = clean[keep_BT[0]].log_softmax(-1), spliced[keep_BT[0]].log_softmax(-1)
        sums[3] += F.kl_div(log_q, log_p, log_target=True, reduction="sum")
        tokens, positions = tokens + int(kept.sum()), positions + int(keep_BT.sum())
    return (*(sums[:3] / tokens).tolist(), (sums[3] / positions).item(), tokens)


def require_equal(found, hookpoint, expected, suite="a"):
    ce_clean, ce_zero, ce, kl, count = expected
    result = found.suites[suite][hookpoint]
    assert found.num_tokens == count
    assert found.ce_clean == pytest.approx(ce_clean, rel=1e-5)
    assert found.ce_zero[hookpoint] == pytest.approx(ce_zero, rel=1e-5)
    assert result.ce == pytest.approx(ce, rel=1e-5)
    assert result.delta_ce == pytest.approx(ce - ce_clean, rel=1e-3, abs=1e-5)
    assert result.kl == pytest.approx(kl, rel=1e-3, abs=1e-5)
    if ce_zero > ce_clean:
        assert result.ce_score == pytest.approx((ce_zero - ce) / (ce_zero - ce_clean), rel=1e-3, abs=1e-3)
    else:
        assert result.ce_score is None


def hookpoints_of(kind):
    blocks = BLOCKS[kind]
    return (f"{blocks}.0", f"{blocks}.1", f"{blocks}.2", f"{blocks}.1.mlp")


@pytest.mark.parametrize("place", range(4), ids=["first", "middle", "last", "mlp"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_a_whole_forward_with_a_hook(kind, place):
    model, hookpoint = make_model(kind), hookpoints_of(kind)[place]
    rows = fluent_rows(model)
    suite = random_suite((hookpoint,))
    found = evaluate_losses({"a": suite}, make_source(model, (hookpoint,), rows=rows), 10**6)
    expected = naive(model, suite, hookpoint, rows)
    require_equal(found, hookpoint, expected)
    assert expected[3] > 1e-3, "splicing should matter, or the test shows nothing"
    assert found.suites["a"][hookpoint].ce_score is not None


def test_where_zero_ablation_does_no_harm_there_is_no_ce_score():
    model, rows = make_model(), make_rows()
    found = evaluate_losses({"a": random_suite(("layers.0",))}, make_source(model, ("layers.0",), rows=rows), 10**6)
    assert found.ce_zero["layers.0"] <= found.ce_clean
    assert found.suites["a"]["layers.0"].ce_score is None


def test_special_positions_count_where_the_source_keeps_them():
    model, rows, suite = make_model(), make_rows(), random_suite(("layers.1",))
    found = evaluate_losses({"a": suite}, make_source(model, ("layers.1",), rows=rows, skip_special=False), 10**6)
    require_equal(found, "layers.1", naive(model, suite, "layers.1", rows, keep_special=True))


def test_several_hookpoints_are_spliced_one_at_a_time():
    model, rows, hookpoints = make_model(), make_rows(), ("layers.0", "layers.1", "layers.2")
    suite = random_suite(hookpoints, (("layers.0", "layers.2"), ("layers.1",)))
    found = evaluate_losses({"a": suite}, make_source(model, hookpoints, rows=rows), 10**6)
    for hookpoint in hookpoints:
        require_equal(found, hookpoint, naive(model, suite, hookpoint, rows))


def test_hookpoints_that_are_not_asked_for_are_only_spliced_with_all_others():
    source = make_source(make_model())
    suites = {"a": random_suite()}
    whole = evaluate_losses(suites, source, 64)
    some = evaluate_losses(suites, source, 64, alone=["layers.1"], both_scopes=False)
    assert set(some.suites["a"]) == set(some.ablated) == {"layers.1"} and some.other_scope is None
    assert some.suites["a"]["layers.1"] == whole.suites["a"]["layers.1"]
    assert some.all_layers == whole.all_layers


@pytest.mark.parametrize("batch_rows", [1, 4, 7])
def test_losses_do_not_depend_on_how_rows_are_batched(batch_rows):
    suite, model = random_suite(), make_model()
    rows = fluent_rows(model)
    one = evaluate_losses({"a": suite}, make_source(model, rows=rows, batch_rows=batch_rows), 10**6)
    other = evaluate_losses({"a": suite}, make_source(model, rows=rows, batch_rows=10), 10**6)
    assert one.num_tokens == other.num_tokens
    assert one.ce_clean == pytest.approx(other.ce_clean, rel=1e-6)
    for hookpoint, result in one.suites["a"].items():
        again = other.suites["a"][hookpoint]
        for metric in LOSSES:
            assert getattr(result, metric) == pytest.approx(getattr(again, metric), rel=1e-4, abs=1e-5), metric
            assert result.intervals[metric] == pytest.approx(again.intervals[metric], rel=1e-4, abs=1e-5), metric


def test_a_large_vocabulary_is_read_in_smaller_batches_with_the_same_result(monkeypatch):
    suite, whole = random_suite(), []
    expected = evaluate_losses({"a": suite}, make_source(), 10**6)
    monkeypatch.setattr(losses_module, "LOGITS_AT_ONCE", 1)
    found = evaluate_losses({"a": suite}, make_source(), 10**6, progress=whole.append)
    assert whole == [LENGTH] * 10
    assert found.ce_clean == pytest.approx(expected.ce_clean, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_sae_that_loses_nothing_costs_nothing(kind):
    hookpoints = hookpoints_of(kind)
    source = make_source(make_model(kind), hookpoints)
    for result in evaluate_losses({"a": identity_suite(hookpoints)}, source, 10**6).suites["a"].values():
        assert result.delta_ce == pytest.approx(0, abs=1e-5)
        assert 0 <= result.kl < 1e-5


def test_kl_is_never_negative_and_zero_only_without_change():
    found = evaluate_losses({"a": random_suite()}, make_source(), 10**6)
    assert all(result.kl > 1e-3 for result in found.suites["a"].values())


def test_suites_of_equal_groups_and_different_weights_are_told_apart():
    suites = {"one": random_suite(seed=0), "other": random_suite(seed=5)}
    found = evaluate_losses(suites, make_source(), 10**6)
    for name, suite in suites.items():
        assert found.suites[name] == evaluate_losses({"a": suite}, make_source(), 10**6).suites["a"]
    assert found.suites["one"] != found.suites["other"]


def test_an_sae_that_suites_share_is_spliced_once(monkeypatch):
    calls, spliced = [], CleanPass.spliced
    monkeypatch.setattr(CleanPass, "spliced", lambda self, *args: calls.append(args[0]) or spliced(self, *args))
    suites = {"one": random_suite(), "other": random_suite()}
    found = evaluate_losses(suites, make_source(batch_rows=10), 10**6)
    assert sorted(calls) == ["layers.0", "layers.0", "layers.1", "layers.1"]  # once with zeros, once with the SAE
    assert found.suites["one"] == found.suites["other"]


def test_tokens_asked_for_are_rounded_up_to_whole_rows():
    seen = []
    evaluate_losses({"a": random_suite()}, make_source(), 3 * LENGTH + 1, progress=seen.append)
    assert sum(seen) == 4 * LENGTH


@pytest.mark.parametrize("ids_RT", [make_rows().ids_RT * 0, make_rows().ids_RT[:0]], ids=["all special", "no rows"])
def test_without_a_token_to_evaluate_on_it_is_the_text_that_is_at_fault(ids_RT):
    source = make_source(rows=TokenRows(ids_RT=ids_RT, special_ids=(0,)))
    with pytest.raises(TextError, match="No held-out token"):
        evaluate_losses({"a": random_suite()}, source, 100)


def test_a_row_without_a_kept_token_does_not_disturb_the_others():
    rows = make_rows()
    rows.ids_RT[3] = 0
    model, suite = make_model(), random_suite(("layers.1",))
    found = evaluate_losses({"a": suite}, make_source(model, ("layers.1",), rows=rows, batch_rows=1), 10**6)
    require_equal(found, "layers.1", naive(model, suite, "layers.1", rows))


# ---- what it leaves of the model


def hooks_and_forwards(model):
    return {
        name: (list(module._forward_hooks), list(module._forward_pre_hooks), vars(module).get("forward"))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_untouched_afterwards(kind):
    model = make_model(kind)
    ids_BT = make_rows()[[0, 1]]
    before, hooks = model(ids_BT).logits, hooks_and_forwards(model)
    hookpoints = hookpoints_of(kind)
    evaluate_losses({"a": random_suite(hookpoints)}, make_source(model, hookpoints), 10**6)
    assert hooks_and_forwards(model) == hooks
    assert torch.equal(model(ids_BT).logits, before)


def test_the_model_is_untouched_after_an_error():
    model = make_model()
    ids_BT, hooks = make_rows()[[0, 1]], hooks_and_forwards(model)
    before = model(ids_BT).logits
    clean = CleanPass(model, ids_BT, ["layers.1"])
    with pytest.raises(RuntimeError):
        clean.spliced("layers.1", torch.zeros(2, LENGTH, D_MODEL + 1))
    assert hooks_and_forwards(model) == hooks
    assert torch.equal(model(ids_BT).logits, before)


def test_a_forward_that_was_put_on_a_block_stays_on_it():
    """Models that are spread over devices carry such forwards on their blocks."""
    model = make_model()
    block = base_model(model).layers[1]
    original = block.forward
    block.forward = lambda *args, **options: original(*args, **options)
    hooks = hooks_and_forwards(model)
    evaluate_losses({"a": random_suite()}, make_source(model), 10**6)
    assert hooks_and_forwards(model) == hooks


@pytest.mark.parametrize(
    ("hookpoint", "ran"), [("layers.2", [0, 0, 0]), ("layers.1", [0, 0, 1]), ("layers.1.mlp", [0, 1, 1])]
)
def test_blocks_below_the_splice_are_not_computed_again(hookpoint, ran):
    model = make_model()
    clean = CleanPass(model, make_rows()[[0, 1]], [hookpoint])
    counts = [0, 0, 0]

    def counter(index):
        def count(*_):
            counts[index] += 1

        return count

    # The attention runs exactly where its block is computed.
    for index, block in enumerate(base_model(model).layers):
        block.attention.register_forward_hook(counter(index))
    clean.spliced(hookpoint, clean.hidden[hookpoint])
    assert counts == ran


@pytest.mark.parametrize("kind", KINDS)
def test_splicing_in_what_was_there_gives_the_clean_logits(kind):
    model, hookpoints = make_model(kind), hookpoints_of(kind)
    clean = CleanPass(model, make_rows()[[0, 1]], hookpoints)
    assert torch.equal(clean.logits_BTV, model(make_rows()[[0, 1]]).logits)
    for hookpoint in hookpoints:
        torch.testing.assert_close(clean.spliced(hookpoint, clean.hidden[hookpoint]), clean.logits_BTV)


def test_the_embedding_can_be_spliced_too():
    model, suite, rows = make_model(), random_suite(("embed_in",)), make_rows()
    found = evaluate_losses({"a": suite}, make_source(model, ("embed_in",), rows=rows), 10**6)
    require_equal(found, "embed_in", naive(model, suite, "embed_in", rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_evaluated(dtype):
    model = make_model().to(dtype)
    source = make_source(model)
    exact = evaluate_losses({"a": random_suite()}, make_source(make_model()), 10**6)
    found = evaluate_losses({"a": random_suite()}, source, 10**6)
    assert found.ce_clean == pytest.approx(exact.ce_clean, rel=0.02)
    for hookpoint, result in found.suites["a"].items():
        assert result.kl == pytest.approx(exact.suites["a"][hookpoint].kl, rel=0.1)


def test_a_plain_module_without_a_config_is_evaluated():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Embedding(VOCABULARY, D_MODEL)
            self.layers = nn.ModuleList([nn.Linear(D_MODEL, D_MODEL) for _ in range(3)])
            self.head = nn.Linear(D_MODEL, VOCABULARY)

        def forward(self, ids_BT):
            x_BTD = self.embed(ids_BT)
            for layer in self.layers:
                x_BTD = x_BTD + layer(x_BTD).tanh()
            return self.head(x_BTD)

    model = Plain().eval().requires_grad_(False)
    source = Harvester(model, make_rows(), ["layers.0", "layers.1"])
    found = evaluate_losses({"a": identity_suite(("layers.0", "layers.1"))}, source, 10**6)
    assert found.ce_clean > 0
    assert all(result.kl < 1e-5 for result in found.suites["a"].values())


def test_every_metric_has_a_unit():
    found = evaluate_losses({"a": random_suite()}, make_source(), 100)
    assert set(LOSSES) == set(vars(found.suites["a"]["layers.0"])) - {"intervals", "estimates"}


# ---- all layers at once


def together(model, suite, hookpoints, rows):
    """ce and kl with every hookpoint hooked in a whole forward, row by row; special positions stay."""
    ce, kl, tokens, positions = 0.0, 0.0, 0, 0
    for row in range(len(rows)):
        ids_BT = rows[[row]]
        keep_BT = ids_BT != 0
        clean = model(ids_BT, use_cache=False).logits[0].double()
        handles = []
        for hookpoint in hookpoints:

            def hook(module, inputs, output, hookpoint=hookpoint):
                x_BTD = output[0] if isinstance(output, tuple) else output
                x_BTD = torch.where(keep_BT[..., None], suite[hookpoint](x_BTD), x_BTD)  # noqa: B023
                return (x_BTD, *output[1:]) if isinstance(output, tuple) else x_BTD

            handles.append(base_model(model).get_submodule(hookpoint).register_forward_hook(hook))
        spliced = model(ids_BT, use_cache=False).logits[0].double()
        for handle in handles:
            handle.remove()
        kept, after = keep_BT[0, :-1], ids_BT[0, 1:]
        ce += F.cross_entropy(spliced[:-1][kept], after[kept], reduction="sum").item()
        log_p, log_q = clean[keep_BT[0]].log_softmax(-1), spliced[keep_BT[0]].log_softmax(-1)
        kl += F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
        tokens, positions = tokens + int(kept.sum()), positions + int(keep_BT.sum())
    return ce / tokens, kl / positions


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_layers_spliced_each_sae_sees_what_the_splices_below_it_make(kind):
    model, hookpoints = make_model(kind), hookpoints_of(kind)
    rows, suite = fluent_rows(model), random_suite(hookpoints)
    source = make_source(model, hookpoints, rows=rows)
    found = evaluate_losses({"a": suite}, source, 10**6).all_layers["a"]
    assert (found.ce, found.kl) == pytest.approx(together(model, suite, hookpoints, rows), rel=1e-5)
    single = evaluate_losses({"a": suite}, source, 10**6).suites["a"]
    assert all(abs(found.kl - one.kl) > 1e-3 for one in single.values()), "or the test shows nothing"


def test_of_one_hookpoint_all_at_once_is_the_same_as_one_at_a_time():
    found = evaluate_losses({"a": random_suite(("layers.1",))}, make_source(hookpoints=("layers.1",)), 10**6)
    assert found.all_layers["a"] == found.suites["a"]["layers.1"]
    assert found.all_layers_ablated["a"] == found.ablated["layers.1"]


# ---- ablations and scopes


def test_mean_ablation_puts_the_mean_of_the_evaluated_positions_everywhere():
    model, rows = make_model(), make_rows()
    source = make_source(model, ("layers.1",), rows=rows)
    mean_D = all_activations(source)[0].mean(0).float()
    found = evaluate_losses({"a": random_suite(("layers.1",))}, source, 10**6)
    ids_BT = rows[list(range(len(rows)))]
    logits = spliced_forward(model, "layers.1", ids_BT, lambda x_BTD: mean_D.expand_as(x_BTD))[:, :-1].double()
    kept = ids_BT[:, :-1] != 0
    expected = F.cross_entropy(logits[kept], ids_BT[:, 1:][kept])
    assert found.ablated["layers.1"].ce_mean == pytest.approx(expected.item(), rel=1e-5)


def test_scores_are_what_their_formulas_say():
    model = make_model()
    found = evaluate_losses({"a": random_suite()}, make_source(model, rows=fluent_rows(model)), 10**6)
    for hookpoint, one in found.suites["a"].items():
        ablated = found.ablated[hookpoint]
        scores = [
            (ablated.ce_zero - one.ce) / (ablated.ce_zero - found.ce_clean),
            (ablated.kl_zero - one.kl) / ablated.kl_zero,
            (ablated.ce_mean - one.ce) / (ablated.ce_mean - found.ce_clean),
            (ablated.kl_mean - one.kl) / ablated.kl_mean,
        ]
        assert [one.ce_score, one.kl_score, one.ce_score_mean, one.kl_score_mean] == pytest.approx(scores)


@pytest.mark.parametrize("skip_special", [True, False])
def test_the_other_scope_is_what_a_source_of_the_other_choice_finds(skip_special):
    model, suite, rows = make_model(), random_suite(), make_rows()
    rows.ids_RT[4] = 7  # a row without special tokens
    one, other = (
        evaluate_losses({"a": suite}, make_source(model, rows=rows, skip_special=skip), 10**6)
        for skip in (skip_special, not skip_special)
    )
    beside = one.other_scope
    assert (beside.scope, beside.num_tokens) == (other.scope, other.num_tokens)
    assert beside.ce_clean == pytest.approx(other.ce_clean)
    for found, expected in ((beside.suites["a"]["layers.1"], other.suites["a"]["layers.1"]),
                            (beside.all_layers["a"], other.all_layers["a"])):  # fmt: skip
        values = [
            [getattr(result, name) for name in ("ce", "kl", "ce_score", "kl_score")] for result in (found, expected)
        ]
        assert values[0] == pytest.approx(values[1])


def test_a_scope_without_a_token_is_left_out():
    rows = make_rows()
    rows.ids_RT[:] = 0
    found = evaluate_losses({"a": random_suite()}, make_source(rows=rows, skip_special=False), 10**6)
    assert found.other_scope is None


def test_a_dictionary_that_never_fires_is_as_bad_as_the_mean_and_nothing_is_nan():
    model = make_model()
    source = make_source(model, rows=fluent_rows(model))
    one = evaluate_losses({"a": mean_suite(source)}, source, 10**6)
    for result in one.suites["a"].values():
        assert result.kl > 0
        values = [value for name in LOSSES for value in [getattr(result, name)] if value is not None]
        ends = [end for interval in result.intervals.values() for end in interval]
        assert all(map(math.isfinite, values + ends))
