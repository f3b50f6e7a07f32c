"""The sparse step equals the dense one."""

import pytest
import torch
from sae_cases import WEIGHTS, random_batch
from torch.nn import functional as F

from groupsae.config import TopKConfig
from groupsae.saes.kernels import gather
from groupsae.saes.layer_maps import Bias
from groupsae.saes.topk import TopKSAE


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("length", "k"), [(128, 4), (128, 1), (160, 5), (128, 5), (130, 4), (16, 1), (7, 7), (40, 40)])
def test_top_k_finds_the_largest_numbers_and_where_they_stand(length, k):
    x_NS = numbers(50, length)
    values_NK, indices_NK = gather.top_k(x_NS, k)
    assert torch.equal(values_NK.sort(dim=1, descending=True).values, x_NS.topk(k).values)
    assert torch.equal(x_NS.gather(1, indices_NK), values_NK)
    assert all(len(set(row)) == k for row in indices_NK.tolist())


def test_top_k_finds_numbers_that_all_stand_in_one_block():
    x_NS = torch.zeros(1, 128)
    x_NS[0, 3::8] = torch.arange(1.0, 17.0)  # places 3, 11, 19, ... share a strided block
    values_NK, indices_NK = gather.top_k(x_NS, 4)
    assert sorted(values_NK[0].tolist()) == [13, 14, 15, 16]
    assert sorted(indices_NK[0].tolist()) == [99, 107, 115, 123]


def test_equal_numbers_are_chosen_once_each():
    values_NK, indices_NK = gather.top_k(torch.ones(3, 128), 4)
    assert torch.equal(values_NK, torch.ones(3, 4))
    assert all(len(set(row)) == 4 for row in indices_NK.tolist())


def test_transposed_rows_are_the_sums_over_tokens():
    x_ND, values_NK = numbers(20, 6), numbers(20, 3, seed=1)
    indices_NK = numbers(20, 11, seed=2).topk(3).indices
    expected_SD = torch.zeros(11, 6, dtype=torch.float64)
    for token in range(20):
        for value, latent in zip(values_NK[token], indices_NK[token], strict=True):
            expected_SD[latent] += value * x_ND[token]
    listed = gather.GatherKernel.of(indices_NK, values_NK, 11)
    torch.testing.assert_close(listed.rows(x_ND, listed.values), expected_SD)
    W_SD = numbers(11, 6, seed=3)
    rows_SD, dots_M = listed.rows_and_dots(x_ND, W_SD)
    torch.testing.assert_close(rows_SD, expected_SD)
    torch.testing.assert_close(dots_M, (W_SD[listed.latents.long()] * x_ND[listed.tokens]).sum(1))
    sums_S = torch.zeros(11, dtype=torch.float64).index_add_(0, indices_NK.flatten(), values_NK.flatten())
    torch.testing.assert_close(listed.sums(Bias(sums_S), listed.values), sums_S)


def both_steps(tile, monkeypatch):
    """(sparse, dense): the loss and all gradients, z's too, of a width for which the two-stage top-k is used."""
    monkeypatch.setitem(gather.TILE_NUMBERS, "cpu", tile)
    results = []
    for dense in (False, True):
        sae = TopKSAE(16, TopKConfig(d_sae=128, k=4)).double()
        with torch.no_grad():
            for index, name in enumerate(WEIGHTS):
                getattr(sae, name).copy_(numbers(*getattr(sae, name).shape, seed=index))
        z_ND = random_batch().requires_grad_()
        if dense:
            pre_NS = F.linear(z_ND - sae.b_dec, sae.W_enc, sae.b_enc)
            values_NK, indices_NK = pre_NS.topk(4)
            latents_NS = torch.zeros_like(pre_NS).scatter(1, indices_NK, values_NK.relu())
        else:
            latents_NS = sae.encode(z_ND)
        (latents_NS @ sae.W_dec + sae.b_dec - z_ND).square().sum().backward()
        results.append({name: getattr(sae, name).grad for name in WEIGHTS} | {"z": z_ND.grad, "latents": latents_NS})
    return results


@pytest.mark.parametrize("tile", [1, 128 * 7, 10**9])
def test_gradients_equal_the_dense_ones_those_of_the_input_too(tile, monkeypatch):
    found, expected = both_steps(tile, monkeypatch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)
