"""The kernel of a training's steps: measured without side effects, used by all groups, kept on resuming."""

import json
import sys
from dataclasses import asdict

import pytest
import torch
from torch.nn import functional as F
from training_cases import TRAIN, Stop, equal, last_manifest, make_source, run, stop_after, weights

from groupsae.config import GatedConfig, TopKConfig
from groupsae.saes.base import BatchStats, StepLosses
from groupsae.saes.kernels import by_name
from groupsae.saes.kernels.dense import DenseKernel
from groupsae.saes.kernels.gather import GatherKernel
from groupsae.saes.registry import build_sae
from groupsae.training import kernel_choice
from groupsae.training.fit import measure_scales
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.kernel_choice import KernelChoice, choice_for, choose_kernel, fastest

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def made(d_sae=24, k=3):
    sae = build_sae(8, TopKConfig(d_sae=d_sae, k=k))
    sae.initialize(1)
    return sae


@pytest.fixture
def two_kernels(monkeypatch):
    """A machine that has two kernels, as a GPU has three; what `fastest` is asked is recorded, and it says dense."""
    asked = []

    def says_dense(sae, tokens, names):
        asked.append((tokens, names))
        return KernelChoice("dense", {"gather": 2e-3, "dense": 1e-3})

    monkeypatch.setattr(kernel_choice, "kernels_on", lambda device: ("gather", "dense"))
    monkeypatch.setattr(kernel_choice, "fastest", says_dense)
    return asked


def test_on_a_cpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(kernel_choice, "fastest", lambda *_: pytest.fail("measured"))
    assert choice_for(made(), 64) == KernelChoice("gather")
    assert by_name.kernels_on(CPU) == ("gather",)


def test_on_a_gpu_all_paths_are_tried_the_definition_first():
    assert by_name.kernels_on(torch.device("cuda")) == ("gather", "triton", "dense")


def test_the_fastest_kernel_is_chosen(monkeypatch):
    times = {"gather": 2e-3, "dense": 1e-3}
    monkeypatch.setattr(kernel_choice, "_take_turns", lambda works, *_: {name: times[name] for name in works})
    assert fastest(made(), 16, ("gather", "dense")) == KernelChoice("dense", times)
    times["dense"] = 3e-3
    assert fastest(made(), 16, ("gather", "dense")).name == "gather"


def test_measuring_changes_neither_weights_nor_gradients_nor_random_states():
    sae, random = made(), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    choice = fastest(sae, 16, ("gather", "dense"))
    assert set(choice.seconds) == {"gather", "dense"} and min(choice.seconds.values()) > 0 and not choice.faults
    assert equal(before, sae.state_dict())
    assert all(parameter.grad is None for parameter in sae.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert sae.kernel is GatherKernel


def fault(monkeypatch, instead):
    """Let the dense kernel's decoding be something else."""
    monkeypatch.setattr(DenseKernel, "decode", staticmethod(instead))


def test_a_kernel_that_fails_is_left_out_and_said_to_be(monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler was found\nand more")

    fault(monkeypatch, fails)
    choice = fastest(made(), 16, ("gather", "dense"))
    assert choice.name == "gather" and choice.faults == {"dense": "no compiler was found"}
    assert str(choice).startswith("gather; gather ") and str(choice).endswith("dense left out: no compiler was found")


@pytest.mark.parametrize("factor", [1.1, torch.nan])
def test_a_kernel_that_gives_other_gradients_is_left_out(monkeypatch, factor):
    right = DenseKernel.decode
    fault(monkeypatch, lambda *arguments: right(*arguments) * factor)
    choice = fastest(made(), 16, ("gather", "dense"))
    assert list(choice.seconds) == ["gather"] and "its gradients are" in choice.faults["dense"]


def test_a_missing_triton_is_no_obstacle(monkeypatch):
    monkeypatch.setitem(sys.modules, "groupsae.saes.kernels.triton", None)
    choice = fastest(made(), 16, ("gather", "triton", "dense"))
    assert set(choice.seconds) == {"gather", "dense"} and "groupsae.saes.kernels.triton" in choice.faults["triton"]


def test_every_kernel_failing_for_want_of_memory_leaves_the_definition(monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory (not really)")

    monkeypatch.setattr(kernel_choice, "squared_error", fails)
    choice = fastest(made(), 16, ("gather", "dense"))
    assert choice.name == "gather" and not choice.seconds and set(choice.faults) == {"gather", "dense"}
    monkeypatch.setattr(kernel_choice, "_batch", fails)
    monkeypatch.setattr(kernel_choice, "kernels_on", lambda device: ("gather", "dense"))
    assert choice_for(made(), 16) == KernelChoice("gather", {}, {"gather": "CUDA out of memory (not really)"})


def test_all_groups_take_the_kernel_and_it_is_measured_once_and_told(two_kernels, monkeypatch):
    taken, told, records = [], [], []
    decode = DenseKernel.decode
    monkeypatch.setattr(DenseKernel, "decode", staticmethod(lambda *given: taken.append(1) or decode(*given)))
    trained = run(chosen=told.append, log=records.append)
    assert two_kernels == [(TRAIN.batch_tokens, ("gather", "dense"))]
    assert told == [trained.kernel] and trained.kernel.name == "dense"
    assert {record["kernel"] for record in records} == {"dense"}
    assert {sae.kernel for sae in trained.saes.values()} == {DenseKernel}
    assert len(taken) == 2 * records[-1]["step"]


def test_architectures_with_one_kernel_keep_it(two_kernels):
    sae = build_sae(8, GatedConfig(d_sae=24, k=3))
    assert choose_kernel([sae], 16) == KernelChoice("gather") and not two_kernels


def test_training_goes_on_by_the_kernel_it_had_and_as_if_never_stopped(two_kernels, tmp_path, monkeypatch):
    whole = run()
    with pytest.raises(Stop):
        run(folder=tmp_path, progress=stop_after(9))
    assert '"kernel"' in last_manifest(tmp_path).read_text()
    monkeypatch.setattr(kernel_choice, "fastest", lambda *_: pytest.fail("measured again"))
    told = []
    resumed = run(folder=tmp_path, chosen=told.append)
    assert resumed.kernel == whole.kernel and not told
    assert equal(weights(resumed), weights(whole))


def test_a_kernel_that_is_not_there_any_more_is_chosen_anew(two_kernels, monkeypatch):
    sae = made()
    assert choose_kernel([sae], 16, KernelChoice("triton")).name == "dense"
    monkeypatch.setattr(kernel_choice, "kernels_on", lambda device: ("gather", "triton", "dense"))
    monkeypatch.setitem(sys.modules, "groupsae.saes.kernels.triton", None)
    assert choose_kernel([sae], 16, KernelChoice("triton")).name == "dense"
    assert len(two_kernels) == 2


def test_a_run_tells_the_kernel_once_and_records_it(two_kernels, done, call):
    code, _, err = call("train", done, "--overwrite")
    assert code == 0
    assert err.count("kernel of the steps") == 1
    assert "train: kernel of the steps: dense; gather 2.00 ms; dense 1.00 ms\n" in err
    facts = json.loads((done / "train.json").read_text())
    assert facts["kernel"] == asdict(KernelChoice("dense", {"gather": 2e-3, "dense": 1e-3}))
    lines = [json.loads(line) for line in (done / "timing.jsonl").read_text().splitlines()]
    assert lines and all(line["kernel"] == "dense" for line in lines)
    assert '"kernel"' not in (done / "metrics.jsonl").read_text()


def test_a_run_on_a_cpu_says_nothing_of_kernels(done, call):
    code, _, err = call("train", done, "--overwrite")
    assert code == 0 and "kernel of the steps" not in err
    assert json.loads((done / "train.json").read_text())["kernel"] == asdict(KernelChoice("gather"))


# ---- the whole step


def naive_losses(sae, z_ND, dead_S, *_):
    """TopK's losses in plain dense PyTorch, gradients by autograd."""
    latents = sae.encode_sparse(z_ND)
    pre_NS = F.linear(z_ND - sae.b_dec, sae.W_enc, sae.b_enc)
    chosen_NS = torch.zeros_like(pre_NS).scatter(1, latents.indices_NK, 1.0)
    e_ND = z_ND - (pre_NS.relu() * chosen_NS) @ sae.W_dec - sae.b_dec
    error, variance = e_ND.square().sum(), BatchStats.of(z_ND).variance
    auxk = z_ND.new_zeros(())
    if dead_S.any():
        kept_NS = pre_NS.masked_fill(~dead_S, -torch.inf)
        strongest = kept_NS.topk(min(sae.d_model // 2, int(dead_S.sum())))
        e_hat_ND = torch.zeros_like(pre_NS).scatter(1, strongest.indices, strongest.values) @ sae.W_dec
        auxk = min(dead_S.sum() / (sae.d_model // 2), 1) * (e_hat_ND - e_ND.detach()).square().sum() / variance
    total = error / variance + sae.auxk_weight * auxk
    return StepLosses(total, error.detach(), variance, auxk.detach(), latents)


@pytest.mark.parametrize("name", ["gather", "dense", "triton"])
def test_after_twenty_steps_weights_equal_those_of_the_naive_step(name, monkeypatch):
    if name == "triton":
        pytest.importorskip("triton")
        monkeypatch.setattr("groupsae.saes.kernels.triton.SHORTEST", 2)
    source, group = make_source(), ("layers.0", "layers.2")
    sae = TopKConfig(d_sae=12, k=2, dead_after_tokens=30)
    scales = measure_scales(source, 300).to(DEVICE)
    fast, naive = (GroupTrainer(group, scales, source.d_model, sae, TRAIN, 0) for _ in range(2))
    fast.sae.kernel = by_name.kernel_named(name)
    monkeypatch.setattr(naive.sae, "losses", lambda *given: naive_losses(naive.sae, *given))
    x_LND = source.read(range(20)).to(DEVICE)
    for step in range(20):
        tokens_N = torch.arange(8, device=DEVICE)
        layers_N = tokens_N % 2
        x_ND = x_LND[layers_N * 2, 8 * step + tokens_N]
        for each in (fast, naive):
            each.step(x_ND, layers_N, step / 20)
    assert naive.meter.read()["auxk"] > 0
    for (which, found), expected in zip(fast.sae.named_parameters(), naive.sae.parameters(), strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm(), which
    assert torch.equal(fast.dead.silent_S, naive.dead.silent_S)
