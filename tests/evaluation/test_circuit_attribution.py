import pytest
import torch
from circuit_cases import CIRCUIT, everywhere, random_prompts, spliced_toy, toy_prompts
from evaluation_cases import BLOCKS, VOCABULARY, identity_suite, make_model, random_suite, spliced_forward

from groupsae.evaluation.circuits import spliced as spliced_module
from groupsae.evaluation.circuits.attribution import attribute
from groupsae.evaluation.circuits.nodes import choose_nodes, complement, count_nodes, weakest_effect
from groupsae.evaluation.circuits.spliced import SplicedModel
from groupsae.evaluation.splice import CleanPass

LAYERS = ("layers.0", "layers.1", "layers.2")


def taken(nodes):
    return {name: set(taken_S.nonzero().flatten().tolist()) for name, taken_S in nodes.items()}


@pytest.mark.parametrize("method", ["gradient", "integrated"])
@pytest.mark.parametrize("choose", ["per-layer", "overall"])
def test_attribution_finds_the_true_circuit_and_nothing_else(method, choose):
    effects = attribute(spliced_toy(), [toy_prompts()], method)
    assert taken(choose_nodes(effects, 12, choose)) == CIRCUIT


def test_the_effect_of_a_latent_is_what_patching_it_does():
    # m = 3 x for one answer; the latent for +1 goes from 1 to 0 in half of the prompts, that for -1 in the other half.
    effects = attribute(spliced_toy(), [toy_prompts()])
    for name, latents in CIRCUIT.items():
        for latent in latents:
            assert effects[name][latent].item() == pytest.approx(-3.0)


def gradient_at(model, hookpoint, prompts):
    """dm/dx of the model without any SAE, (P, T, D)."""
    leaf = CleanPass(model, prompts.clean_PT, [hookpoint]).hidden[hookpoint].detach().requires_grad_()
    logits = spliced_forward(model, hookpoint, prompts.clean_PT, lambda _: leaf)
    return torch.autograd.grad(prompts.logit_difference(logits).sum(), leaf)[0]


@pytest.mark.parametrize("kind", list(BLOCKS))
def test_gradients_pass_once_through_every_layer_whatever_the_saes(kind):
    model, prompts = make_model(kind), random_prompts(VOCABULARY)
    names = tuple(f"{BLOCKS[kind]}.{index}" for index in range(3))
    suite = random_suite(names)
    spliced = SplicedModel(model, suite, everywhere)
    effects = attribute(spliced, [prompts])
    clean, patch = spliced.latents(prompts.clean_PT), spliced.latents(prompts.patch_PT)
    for name in names:
        bound = suite[name]
        gradient_PTS = gradient_at(model, name, prompts) @ bound.sae.W_dec.T / bound.scale
        naive_S = ((patch[name] - clean[name]) * gradient_PTS).sum((0, 1)).double() / len(prompts)
        torch.testing.assert_close(effects[name], naive_S, rtol=1e-4, atol=1e-6)


def test_identity_saes_above_leave_the_effects_below_unchanged():
    model, prompts = make_model(), random_prompts(VOCABULARY)
    alone, among = (
        attribute(SplicedModel(model, identity_suite(n), everywhere), [prompts]) for n in (LAYERS[:1], LAYERS)
    )
    torch.testing.assert_close(alone["layers.0"], among["layers.0"])


def patched_whole(spliced, name, prompts):
    """m with one hookpoint's latents set to their patched values, the error kept, less the clean m."""
    bound, run = spliced.saes[name], CleanPass(spliced.model, prompts.clean_PT, tuple(spliced.saes))
    clean, patch = spliced.latents(prompts.clean_PT)[name], spliced.latents(prompts.patch_PT)[name]
    x_PTD = run.hidden[name] + bound.decode(patch) - bound.decode(clean)
    m_P = prompts.logit_difference(run.spliced(name, x_PTD)) - prompts.logit_difference(run.logits_BTV)
    return m_P.mean().item()


def test_integrated_effects_of_a_layer_sum_to_what_patching_it_does():
    prompts = random_prompts(VOCABULARY)
    spliced = SplicedModel(make_model(), random_suite(LAYERS), everywhere)
    integrated, gradient = attribute(spliced, [prompts], "integrated", 64), attribute(spliced, [prompts])
    for name in LAYERS:
        whole = patched_whole(spliced, name, prompts)
        assert integrated[name].sum().item() == pytest.approx(whole, rel=1e-2, abs=1e-4)
    assert gradient["layers.0"].sum().item() != pytest.approx(patched_whole(spliced, "layers.0", prompts), rel=1e-2)


@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_effects_do_not_depend_on_how_prompts_are_batched(method, monkeypatch):
    prompts, spliced = random_prompts(VOCABULARY), SplicedModel(make_model(), random_suite(LAYERS), everywhere)
    together = attribute(spliced, [prompts], method, 3)
    monkeypatch.setitem(spliced_module.LATENTS_AT_ONCE, "cpu", 1)
    alone = attribute(spliced, prompts.split(4), method, 3)
    for name in LAYERS:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-4, atol=1e-7)


def test_special_tokens_hold_no_latents():
    prompts = random_prompts(VOCABULARY)
    prompts.clean_PT[:, :3] = prompts.patch_PT[:, :3] = 0
    spliced = SplicedModel(make_model(), random_suite(LAYERS), lambda ids_BT: ids_BT != 0)
    latents = spliced.latents(prompts.clean_PT)["layers.1"]
    assert not latents[:, :3].any() and latents[:, 3:].any()


def test_the_strongest_latents_of_each_layer_or_of_all_are_taken():
    effects = {"a": torch.tensor([0.0, -5.0, 3.0, 1.0]), "b": torch.tensor([2.0, 0.0, 0.0, 2.0])}
    assert taken(choose_nodes(effects, 1)) == {"a": {1}, "b": {0}}
    assert taken(choose_nodes(effects, 1, "overall")) == {"a": {1, 2}, "b": set()}
    assert taken(choose_nodes(effects, 9)) == {"a": {1, 2, 3}, "b": {0, 3}}
    nodes = choose_nodes(effects, 2)
    assert count_nodes(nodes) == 4 and weakest_effect(effects, nodes) == 2.0
    assert taken(complement(nodes)) == {"a": {0, 3}, "b": {1, 2}}


def test_a_set_without_latents_has_no_weakest_effect():
    effects = {"a": torch.zeros(3)}
    assert weakest_effect(effects, choose_nodes(effects, 2)) is None


def test_the_model_has_no_hooks_afterwards():
    model = make_model()
    attribute(SplicedModel(model, random_suite(LAYERS), everywhere), [random_prompts(VOCABULARY)], "integrated", 1)
    assert not any(module._forward_hooks for module in model.modules())


def test_prompts_are_split_without_losing_any():
    prompts = random_prompts(VOCABULARY, count=5)
    parts = prompts.split(2)
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.answers_P2 for part in parts]), prompts.answers_P2)


@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_a_model_in_half_precision_is_attributed(method):
    prompts, suite = random_prompts(VOCABULARY), random_suite(LAYERS)
    exact = attribute(SplicedModel(make_model(), suite, everywhere), [prompts], method, 4)
    half = attribute(SplicedModel(make_model().to(torch.bfloat16), suite, everywhere), [prompts], method, 4)
    for name in LAYERS:
        assert torch.corrcoef(torch.stack([exact[name], half[name]]))[0, 1] > 0.9
