"""One TopK SAE for several numbers of active latents: its loss, its gradients, and how one number is chosen."""

import json

import pytest
import torch

from groupsae.activations.source import SyntheticSource
from groupsae.config import BatchTopKConfig, RunConfig, TopKConfig, TrainConfig, dump_config
from groupsae.errors import ConfigError
from groupsae.evaluation.reconstruction import evaluate_reconstruction
from groupsae.partition import Partition
from groupsae.saes.kernels.gather import squared_error
from groupsae.saes.kernels.nested import nested_errors
from groupsae.saes.layer_maps import Bias
from groupsae.saes.registry import build_sae
from groupsae.saes.suite import Suite
from groupsae.training.microbatch import backward_in_splits
from groupsae.training.trainer import train

SIZES = (2, 5, 9)


def nested_sae(sizes=SIZES, k=5, d_model=12, d_sae=48):
    """An SAE in float64 whose biases and encoder are away from where they start."""
    sae = build_sae(d_model, TopKConfig(d_sae=d_sae, k=k, nested_k=sizes))
    sae.initialize(1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight, size in ((sae.W_enc, 0.1), (sae.b_enc, 0.2), (sae.b_dec, 0.1)):
            weight += size * torch.randn(weight.shape, generator=random)
    return sae.double()


def tokens(count=40, d_model=12):
    return torch.randn(count, d_model, generator=torch.Generator().manual_seed(3)).double()


def reference(sae, z_ND, dead_S, rows=None, layers_N=None):
    """The loss of the class docstring, dense and with autograd throughout."""
    pre_NS = (z_ND - sae.b_dec) @ sae.W_enc.T + sae.b_enc + (rows[layers_N] if rows is not None else 0)
    variance, errors = (z_ND - z_ND.mean(0)).square().sum(), []
    for size in sae.nested:
        values_NK, indices_NK = pre_NS.topk(size, dim=1)
        latents_NS = torch.zeros_like(pre_NS).scatter(1, indices_NK, values_NK.relu())
        errors.append(latents_NS @ sae.W_dec + sae.b_dec - z_ND)
    total = torch.stack([e_ND.square().sum() for e_ND in errors]).mean() / variance
    dead, e_ND = dead_S.nonzero().squeeze(1), -errors[-1].detach()
    if len(dead):
        k_aux = sae.d_model // 2
        values_NA, places_NA = pre_NS[:, dead].topk(min(k_aux, len(dead)), dim=1)
        e_hat_ND = torch.zeros_like(pre_NS[:, dead]).scatter(1, places_NA, values_NA) @ sae.W_dec[dead]
        auxk = min(len(dead) / k_aux, 1) * (e_hat_ND - e_ND).square().sum() / variance
        total = total + sae.auxk_weight * auxk
    return total


@pytest.mark.parametrize("sizes", [(1, 2), SIZES, (4, 8, 16, 48)])
@pytest.mark.parametrize("num_dead", [0, 3, 20])
def test_loss_and_gradients_are_those_of_a_dense_reference(sizes, num_dead):
    sae, z_ND = nested_sae(sizes, sizes[0]), tokens()
    dead_S = torch.arange(sae.d_sae) < num_dead
    weights = list(sae.parameters())
    loss, expected = sae.losses(z_ND, dead_S).total, reference(sae, z_ND, dead_S)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    found, wanted = (torch.autograd.grad(each, weights) for each in (loss, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_gradients_of_layers_biases_are_those_of_the_reference():
    sae, z_ND = nested_sae(), tokens()
    none_S = torch.zeros(sae.d_sae, dtype=torch.bool)
    rows = (0.3 * torch.randn(3, sae.d_sae, generator=torch.Generator().manual_seed(4)).double()).requires_grad_()
    layers_N = torch.arange(len(z_ND)) % 3
    learned = [*sae.parameters(), rows]
    loss = sae.losses(z_ND, none_S, layer_bias=Bias(rows, layers_N)).total
    found = torch.autograd.grad(loss, learned)
    wanted = torch.autograd.grad(reference(sae, z_ND, none_S, rows, layers_N), learned)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_each_error_is_that_of_a_step_with_so_many_latents():
    sae, z_ND = nested_sae(), tokens()
    latents = sae.at_k(9).encode_sparse(z_ND)
    values_NK, order_NK = latents.values_NK.sort(dim=1, descending=True)
    indices_NK = latents.indices_NK.gather(1, order_NK)
    weights = (sae.W_enc, Bias(sae.b_enc), sae.W_dec, sae.b_dec)
    error_M, e_ND = nested_errors(z_ND, values_NK, indices_NK, SIZES, *weights)
    for size, error in zip(SIZES, error_M, strict=True):
        alone, e_alone_ND = squared_error(z_ND, values_NK[:, :size], indices_NK[:, :size], *weights)
        assert error.item() == pytest.approx(alone.item(), rel=1e-12)
    torch.testing.assert_close(e_ND, e_alone_ND)


def test_what_a_step_reports_is_of_the_k_in_use():
    sae, z_ND = nested_sae(), tokens()
    losses = sae.losses(z_ND, torch.zeros(sae.d_sae, dtype=torch.bool))
    assert losses.error.item() == pytest.approx((sae(z_ND) - z_ND).square().sum().item(), rel=1e-12)
    assert losses.latents.values_NK.shape == (40, 9)


def test_a_batch_in_parts_gives_the_gradient_of_the_whole():
    gradients = []
    for splits in (1, 3):
        sae, z_ND = nested_sae(), tokens()
        dead_S = torch.arange(sae.d_sae) < 4
        backward_in_splits(sae, z_ND, dead_S, 1.0, splits)
        gradients.append([weight.grad for weight in sae.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


# ---- one k of several


@pytest.mark.parametrize("k", [1, 2, 9, 30])
def test_another_k_shares_the_weights_and_changes_what_is_active(k):
    sae, z_ND = nested_sae(), tokens()
    other = sae.at_k(k)
    assert other.W_enc is sae.W_enc and (sae.k, other.k) == (5, k)
    assert other.encode_sparse(z_ND).values_NK.shape == (40, k)
    assert other.config == TopKConfig(d_sae=48, k=k, nested_k=SIZES if k in SIZES else ())
    assert (sae.config.k, sae.encode_sparse(z_ND).values_NK.shape[1]) == (5, 5)


@pytest.mark.parametrize("k", [0, 49])
def test_a_k_that_there_is_not(k):
    with pytest.raises(ConfigError, match="from 1 to 48"):
        nested_sae().at_k(k)


def make_source():
    return SyntheticSource(num_layers=2, d_model=12, num_rows=60, row_tokens=16)


@pytest.fixture(scope="module")
def suite():
    settings = TrainConfig(num_tokens=4000, batch_tokens=64, learning_rate=5e-3, scale_tokens=300)
    sae = TopKConfig(d_sae=48, k=5, nested_k=SIZES, dead_after_tokens=2000)
    return train(make_source(), Partition.singletons(("layers.0", "layers.1")), sae, settings, buffer_tokens=256)


def test_a_trained_suite_serves_every_k(suite, tmp_path):
    fvu = {k: evaluate_reconstruction(suite.at_k(k), make_source(), 900)["layers.1"] for k in SIZES}
    assert [one.l0 for one in fvu.values()] == [pytest.approx(k, abs=0.2) for k in SIZES]
    assert fvu[2].fvu > fvu[5].fvu > fvu[9].fvu
    suite.save(tmp_path / "saved")
    loaded = Suite.load(tmp_path / "saved")
    z_ND = torch.randn(5, 12)
    assert torch.equal(loaded.at_k(9)["layers.0"].encode(z_ND), suite.at_k(9)["layers.0"].encode(z_ND))
    assert json.loads((tmp_path / "saved/groups/layers.0/cfg.json").read_text())["sae"]["nested_k"] == list(SIZES)


def test_nested_training_is_better_at_few_latents_than_training_for_many(suite):
    settings = TrainConfig(num_tokens=4000, batch_tokens=64, learning_rate=5e-3, scale_tokens=300)
    large = TopKConfig(d_sae=48, k=9, dead_after_tokens=2000)
    other = train(make_source(), suite.partition, large, settings, buffer_tokens=256).at_k(2)
    mine, its = (evaluate_reconstruction(one, make_source(), 900)["layers.1"].fvu for one in (suite.at_k(2), other))
    assert mine < its


def test_only_topk_lets_its_k_be_chosen():
    settings = TrainConfig(num_tokens=128, batch_tokens=64, scale_tokens=100)
    other = train(
        make_source(), Partition.singletons(["layers.0"]), BatchTopKConfig(d_sae=24, k=3), settings, buffer_tokens=256
    )
    with pytest.raises(ConfigError, match="batchtopk"):
        other.at_k(2)


# ---- configs


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nested_k": [8], "k": 8}, "at least two"),
        ({"nested_k": [8, 8], "k": 8}, "grow"),
        ({"nested_k": [16, 8], "k": 8}, "grow"),
        ({"nested_k": [0, 8], "k": 8}, "greater than 0"),
        ({"nested_k": [8, 16], "k": 12}, "not among nested_k"),
        ({"nested_k": [8, 99], "k": 8, "d_sae": 64}, "nested_k = 99 is more than the 64 latents"),
        ({"nested_k": [8, 16], "k": 8, "architecture": "batchtopk"}, "'nested_k' for architecture 'batchtopk'"),
    ],
)
def test_what_cannot_be_nested(values, said):
    with pytest.raises(ConfigError, match=said):
        RunConfig(sae=values)


def test_eval_k_is_for_topk():
    assert RunConfig(eval={"k": 8}).eval.k == 8
    with pytest.raises(ConfigError, match="'topk' only, not for gated"):
        RunConfig(sae=[{"k": 8}, {"k": 8, "architecture": "gated"}], eval={"k": 8})


def test_what_is_not_nested_is_written_as_before():
    assert "nested_k" not in dump_config(RunConfig()) and "nested_k" not in TopKConfig().model_dump(mode="json")
    assert TopKConfig(**TopKConfig(k=8, nested_k=(4, 8)).model_dump(mode="json")) == TopKConfig(k=8, nested_k=(4, 8))
    assert (TopKConfig(k=8).trained_k, TopKConfig(k=8, nested_k=(4, 8, 32)).trained_k) == (8, 32)


def test_a_run_evaluates_its_nested_saes_at_any_k(here, call):
    text = (here / "tiny.toml").read_text().replace("k = 4\n", "k = 4\nnested_k = [2, 4, 8]\n")
    (here / "tiny.toml").write_text(text)
    assert call("run", "tiny.toml")[0] == 0
    found = {}
    for k in (2, 8):
        assert call("eval", "tiny.toml", "reconstruction", "--k", k, "--overwrite")[0] == 0
        layers = json.loads((here / "runs/tiny/eval/reconstruction.json").read_text())["suites"]["groups"]
        found[k] = layers["layers.0"]
    assert found[2]["l0"] <= 2 < found[8]["l0"] <= 8 and found[8]["fvu"] < found[2]["fvu"]
