"""A dictionary that is cut by latents over ranks is trained as a whole one is, up to rounding."""

import json

import pytest
import torch
from rank_processes import run_ranks
from test_ranks_train import LAYERS, TRAIN, interrupted, train_in

from groupsae.config import BatchTopKConfig, GatedConfig, JumpReLUConfig, MatryoshkaConfig, TopKConfig
from groupsae.distributed.ranks import ALONE
from groupsae.errors import ConfigError
from groupsae.planning.cluster import latent_slices
from groupsae.saes.registry import build_sae
from groupsae.training.cut import Cut, join
from groupsae.training.cut_saes import cut_sae, first_k

SIZES = {"d_sae": 26, "k": 3, "dead_after_tokens": 150}
CUTTABLE = [TopKConfig(**SIZES), BatchTopKConfig(**SIZES), MatryoshkaConfig(**SIZES), JumpReLUConfig(**SIZES)]
ONE, TWO = (LAYERS[:2],), (LAYERS[:2], (LAYERS[3],))
SHORT = TRAIN.model_copy(update={"num_tokens": 600})


def by_name(sae):
    return sae.architecture


@pytest.mark.parametrize("sae", CUTTABLE, ids=by_name)
def test_one_group_on_two_and_three_ranks_is_that_of_one(tmp_path, sae):
    whole = train_in(made(tmp_path / "1"), ALONE, groups=ONE, sae=sae, train=SHORT)
    for size in (2, 3):
        folder = made(tmp_path / str(size))
        told = run_ranks(size, lambda ranks, folder=folder: train_in(folder, ranks, groups=ONE, sae=sae, train=SHORT))
        assert [len(one) for one in told] == [1] + [0] * (size - 1)
        assert_alike(told[0], whole)
        files = {path.name for path in folder.glob("groups/*/*")}
        assert all("-of-" in name for name in files) and len(files) % size == 0


@pytest.mark.parametrize("after", [1, 3])
def test_pieces_are_read_by_any_number_of_ranks(tmp_path, after):
    whole = train_in(made(tmp_path / "1"), ALONE, groups=TWO)
    folder = made(tmp_path / "4")
    told = run_ranks(4, lambda ranks: interrupted(folder, ranks, 2, 5, groups=TWO))
    assert told[0].startswith("Stopped after step") and len(list(folder.glob("groups/*/*-of-2.safetensors"))) >= 4
    found = run_ranks(after, lambda ranks: train_in(folder, ranks, groups=TWO))
    assert_alike({name: sae for one in found for name, sae in one.items()}, whole)
    logs = [lines_of(tmp_path / name / "metrics.jsonl") for name in ("1", "4")]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for line, other in zip(*logs, strict=True):
        for name, facts in line["groups"].items():
            assert other["groups"][name] == pytest.approx(facts, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("sae", CUTTABLE, ids=by_name)
def test_losses_and_gradients_of_pieces_are_those_of_the_whole(sae):
    whole, z_ND, dead_S = made_sae(sae), torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), dead_of(26)
    losses = whole.losses(z_ND, dead_S, 0.5)
    losses.total.backward()
    norm_of_whole = torch.nn.utils.get_total_norm([weight.grad for weight in whole.parameters()]).item()
    assert losses.auxk > 0

    def work(ranks):
        cut = Cut(ranks, latent_slices(26, ranks.size))
        piece = cut_sae(made_sae(sae), cut)
        found = piece.losses(z_ND, dead_S[cut.own], 0.5)
        found.total.backward()
        gradients = {name: weight.grad for name, weight in piece.named_parameters()}
        shared = cut.norm(gradients)
        return found.total.item(), found.auxk.item(), found.error.item(), gradients, shared

    for size in (2, 3):
        told = run_ranks(size, work)
        for total, auxk, error, _, norm in told:
            assert total == pytest.approx(losses.total.item(), rel=1e-5)
            assert (auxk, error) == pytest.approx((losses.auxk.item(), losses.error.item()), rel=1e-5)
            assert norm == pytest.approx(norm_of_whole, rel=1e-5)
        joined = join([gradients for _, _, _, gradients, _ in told])
        assert all(torch.equal(told[0][3]["b_dec"], gradients["b_dec"]) for _, _, _, gradients, _ in told)
        for name, weight in whole.named_parameters():
            assert torch.allclose(joined[name], weight.grad, rtol=1e-4, atol=1e-6), name


def made_sae(config):
    made = build_sae(8, config)
    made.initialize(3)
    with torch.no_grad():
        made.b_dec.add_(0.1)
        made.b_enc.add_(torch.linspace(-0.1, 0.1, 26))
    return made


def dead_of(count):
    dead_S = torch.zeros(count, dtype=torch.bool)
    dead_S[[0, 1, 5, 9]] = True  # of three pieces the last has none
    return dead_S


def test_of_equal_candidates_the_lower_latents_are_taken():
    def work(ranks):
        cut = Cut(ranks, latent_slices(6, ranks.size))
        mine = torch.tensor([[[1.0, 2.0, 2.0], [2.0, 0.0, 5.0]][ranks.rank], [3.0, 3.0, 3.0]])
        return cut.among_largest(mine, 4).tolist()

    low, high = run_ranks(2, work)
    assert low == [[False, True, True], [True, True, True]]
    assert high == [[True, False, True], [True, False, False]]


def test_the_first_of_equal_numbers_are_taken():
    x_NS = torch.tensor([[1.0, 2, 2, 2, 0, 3], [5, 5, 5, 5, 5, 5], [1, 2, 3, 4, 5, 6]])
    _, indices_NK = first_k(x_NS, 3)
    assert [set(row) for row in indices_NK.tolist()] == [{5, 1, 2}, {0, 1, 2}, {3, 4, 5}]


@pytest.mark.parametrize(
    ("sae", "why"), [(GatedConfig(**SIZES), "gated"), (TopKConfig(**SIZES, nested_k=(2, 3)), "nested_k")]
)
def test_what_cannot_be_cut_is_refused_with_the_reason_and_trained_whole(tmp_path, sae, why):
    with pytest.raises(ConfigError, match=why):
        cut_sae(build_sae(8, sae), Cut(ALONE, latent_slices(26, 1)))
    whole = train_in(made(tmp_path / "1"), ALONE, groups=ONE, sae=sae, train=SHORT)
    told = run_ranks(2, lambda ranks: train_in(made_once(tmp_path / "2"), ranks, groups=ONE, sae=sae, train=SHORT))
    found = next(one for one in told if one)
    assert all(torch.equal(found[group][name], t) for group, tensors in whole.items() for name, t in tensors.items())


def made_once(folder):
    folder.mkdir(exist_ok=True)
    return folder


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def made(folder):
    folder.mkdir()
    return folder


def assert_alike(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for group, tensors in expected.items():
        for name, tensor in tensors.items():
            assert torch.allclose(found[group][name], tensor, rtol=1e-5, atol=atol), (group, name)
