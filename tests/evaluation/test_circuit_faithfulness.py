import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from circuit_cases import CIRCUIT, D_TOY, everywhere, random_prompts, spliced_toy, toy_prompts
from evaluation_cases import VOCABULARY, identity_suite, make_model, random_suite, spliced_forward

from groupsae.evaluation.circuits.curves import Ratios, mean_height
from groupsae.evaluation.circuits.faithfulness import Ablation, mean_latents
from groupsae.evaluation.circuits.prompts import Prompts, prompt_clusters
from groupsae.evaluation.circuits.spliced import SplicedModel
from groupsae.evaluation.circuits.tasks import differences

LAYERS = ("layers.0", "layers.1", "layers.2")


def node_set(spliced, members):
    nodes = {name: torch.zeros(bound.sae.d_sae, dtype=torch.bool) for name, bound in spliced.saes.items()}
    for name, latents in members.items():
        nodes[name][list(latents)] = True
    return nodes


def every(spliced):
    return {name: torch.ones(bound.sae.d_sae, dtype=torch.bool) for name, bound in spliced.saes.items()}


def ratio_of(spliced, prompts, nodes, *, keep_error, patch=False):
    means = None if patch else mean_latents(spliced, [prompts])
    ablation = Ablation(spliced, [prompts], means)
    full_P, empty_P = differences(spliced.model, [prompts]), ablation(node_set(spliced, {}), keep_error=keep_error)
    return Ratios(full_P, empty_P, 50, 0).estimate(ablation(nodes, keep_error=keep_error))


@pytest.mark.parametrize("keep_error", [True, False])
@pytest.mark.parametrize("patch", [True, False])
class TestToy:
    def test_the_true_circuit_does_all_of_the_task(self, keep_error, patch):
        spliced = spliced_toy()
        found = ratio_of(spliced, toy_prompts(), node_set(spliced, CIRCUIT), keep_error=keep_error, patch=patch)
        assert found.value == pytest.approx(1, abs=1e-6)

    def test_without_the_true_circuit_nothing_is_left(self, keep_error, patch):
        spliced = spliced_toy()
        rest = {name: set(range(2 * D_TOY)) - latents for name, latents in CIRCUIT.items()}
        found = ratio_of(spliced, toy_prompts(), node_set(spliced, rest), keep_error=keep_error, patch=patch)
        assert found.value == pytest.approx(0, abs=1e-6)

    def test_one_layer_of_the_circuit_is_not_enough(self, keep_error, patch):
        spliced = spliced_toy()
        half = {"layers.0": CIRCUIT["layers.0"]}
        found = ratio_of(spliced, toy_prompts(), node_set(spliced, half), keep_error=keep_error, patch=patch)
        assert found.value == pytest.approx(0, abs=1e-6)

    def test_the_empty_set_gives_zero_and_the_full_set_one(self, keep_error, patch):
        spliced = spliced_toy()
        options = {"keep_error": keep_error, "patch": patch}
        assert ratio_of(spliced, toy_prompts(), node_set(spliced, {}), **options).value == 0
        assert ratio_of(spliced, toy_prompts(), every(spliced), **options).value == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("keep_error", [True, False])
def test_identity_saes_leave_the_model_as_it_is(keep_error):
    spliced, prompts = SplicedModel(make_model(), identity_suite(LAYERS), everywhere), random_prompts(VOCABULARY)
    m_P = Ablation(spliced, [prompts], None)(every(spliced), keep_error=keep_error)
    torch.testing.assert_close(m_P, differences(spliced.model, [prompts]), rtol=1e-4, atol=1e-5)


def test_with_errors_kept_any_saes_leave_the_model_as_it_is():
    spliced, prompts = SplicedModel(make_model(), random_suite(LAYERS), everywhere), random_prompts(VOCABULARY)
    m_P = Ablation(spliced, [prompts], None)(every(spliced), keep_error=True)
    assert torch.equal(m_P, differences(spliced.model, [prompts]))


def test_with_errors_removed_the_full_set_is_the_reconstruction():
    model, suite, prompts = make_model(), random_suite(("layers.1",)), random_prompts(VOCABULARY)
    spliced = SplicedModel(model, suite, everywhere)
    naive = spliced_forward(model, "layers.1", prompts.clean_PT, suite["layers.1"])
    m_P = Ablation(spliced, [prompts], None)(every(spliced), keep_error=False)
    torch.testing.assert_close(m_P, prompts.logit_difference(naive), rtol=1e-4, atol=1e-5)


def test_ablated_latents_take_the_mean_of_their_position():
    model, suite, prompts = make_model(), random_suite(("layers.1",)), random_prompts(VOCABULARY)
    spliced, bound = SplicedModel(model, suite, everywhere), suite["layers.1"]
    nodes = node_set(spliced, {"layers.1": range(12)})

    def change(x_PTD):
        f_PTS = bound.encode(x_PTD)
        changed_PTS = f_PTS.mean(0, keepdim=True).repeat(len(f_PTS), 1, 1)
        changed_PTS[..., :12] = f_PTS[..., :12]
        return bound.decode(changed_PTS) + x_PTD - bound.decode(f_PTS)

    naive_P = prompts.logit_difference(spliced_forward(model, "layers.1", prompts.clean_PT, change))
    found_P = Ablation(spliced, [prompts], mean_latents(spliced, [prompts]))(nodes, keep_error=True)
    torch.testing.assert_close(found_P, naive_P, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep_error", [True, False])
def test_special_positions_pass_untouched(keep_error):
    prompts, spliced = toy_prompts(), spliced_toy()
    alone = SplicedModel(spliced.model, random_suite(("layers.0",), d_model=D_TOY), lambda ids_BT: ids_BT < 0)
    found_P = Ablation(alone, [prompts], None)(node_set(alone, {}), keep_error=keep_error)
    assert torch.equal(found_P, differences(spliced.model, [prompts]))


def numbers(seed=0, count=40):
    random = torch.Generator().manual_seed(seed)
    full_P = 3 + torch.randn(count, generator=random)
    return full_P, 0.2 * torch.randn(count, generator=random), full_P * 0.5


def test_a_ratio_is_of_means_with_an_interval_about_it():
    full_P, empty_P, m_P = numbers()
    found = Ratios(full_P, empty_P, 500, 0).estimate(m_P)
    naive = (m_P.mean() - empty_P.mean()) / (full_P.mean() - empty_P.mean())
    assert found.value == pytest.approx(naive.item(), rel=1e-6)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.1


def test_intervals_cover_as_often_as_they_say():
    hits = 0
    for seed in range(60):
        full_P, empty_P, m_P = numbers(seed, 60)
        found = Ratios(full_P, empty_P, 200, seed).estimate(m_P)
        hits += found.low <= 0.5 <= found.high
    assert 51 <= hits <= 60


def test_intervals_by_cluster_cover_where_those_by_prompt_do_not():
    """Groups of 8 pairs that share a prompt: a nominal 95 % interval must hold the true ratio about as often."""
    hits = {"pair": 0, "cluster": 0}
    for seed in range(200):
        random = torch.Generator().manual_seed(seed)
        full_P = torch.full((240,), 3.0)
        m_P = 1.5 + torch.randn(30, generator=random).repeat_interleave(8) + 0.3 * torch.randn(240, generator=random)
        for name, clusters_P in (("pair", None), ("cluster", np.repeat(np.arange(30), 8))):
            found = Ratios(full_P, torch.zeros(240), 200, seed, clusters_P).estimate(m_P)
            hits[name] += found.low <= 0.5 <= found.high
    assert hits["pair"] < 0.7 * 200
    assert 0.88 * 200 < hits["cluster"] < 0.99 * 200


def test_pairs_that_share_a_prompt_are_one_cluster():
    one = Prompts(torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[7, 8], [1, 2], [9, 9]]), torch.zeros(3, 2))
    longer = Prompts(torch.tensor([[1, 2, 3], [4, 4, 4]]), torch.tensor([[3, 2, 1], [1, 2, 3]]), torch.zeros(2, 2))
    assert prompt_clusters([one, longer]).tolist() == [0, 0, 1, 2, 2]


def test_the_same_seed_gives_the_same_interval():
    one, again, other = (Ratios(*numbers()[:2], 100, seed).estimate(numbers()[2]) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("shift", [0.0, 0.01])
def test_a_task_that_ablation_does_not_touch_has_no_ratio(shift):
    full_P, _, m_P = numbers()
    empty_P = full_P + shift * torch.randn(len(full_P), generator=torch.Generator().manual_seed(5))
    ratios = Ratios(full_P, empty_P, 100, 0)
    curve = ratios.curve([1, 2], [m_P, m_P])
    assert not ratios.defined and ratios.estimate(m_P) is None
    assert curve.area is None and curve.area_linear is None
    assert [(point.ratio, point.median) for point in curve.points] == [(None, None)] * 2
    json.dumps(asdict(curve), allow_nan=False)


def test_areas_are_mean_heights_over_the_size_and_over_its_logarithm():
    full_P, empty_P = torch.ones(5), torch.zeros(5)
    curve = Ratios(full_P, empty_P, 10, 0).curve([1, 10, 100], [torch.full((5,), y) for y in (0.0, 0.5, 1.0)])
    assert curve.area.value == pytest.approx((0.25 + 0.75) / 2)
    assert curve.area_linear.value == pytest.approx((9 * 0.25 + 90 * 0.75) / 99)
    assert [point.median for point in curve.points] == [0, 0.5, 1]


def test_the_median_is_not_moved_by_one_prompt():
    full_P, empty_P, m_P = torch.ones(5), torch.zeros(5), torch.tensor([0.4, 0.4, 0.4, 0.4, 50.0])
    (point,) = Ratios(full_P, empty_P, 10, 0).curve([1], [m_P]).points
    assert point.median == pytest.approx(0.4) and point.ratio.value > 10


def test_the_height_of_one_point_is_its_own():
    assert mean_height(torch.tensor([3.0]), torch.tensor([[0.7, 0.2]])).tolist() == pytest.approx([0.7, 0.2])
