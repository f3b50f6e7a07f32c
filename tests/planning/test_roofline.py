"""The roofline: known hours, parts that follow from the settings, and `groupsae plan --gpu` without weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from planning_cases import counted
from transformers import AutoConfig

from groupsae.cli import main
from groupsae.errors import ConfigError
from groupsae.grouping.choose import equal
from groupsae.planning.cache import cache_bytes
from groupsae.planning.memory import Footprint
from groupsae.planning.on_gpus import GpuSetting, fewest_gpus
from groupsae.planning.pricing import Pricing
from groupsae.planning.roofline import GPUS, StepShape, gpu_named, model_seconds, step_parts, top_k_bytes

ROOT = Path(__file__).parents[2]
H100 = GPUS["h100"]
KNOWN = {  # hours for one H100 and 1e9 tokens per SAE: per layer, half as many groups, those with all layers of a token
    "pythia-160m": (16, 32768, 0.48, 0.34, 0.26),
    "pythia-1b": (16, 32768, 3.5, 2.6, 1.9),
    "gemma-2-2b": (8, 8192, 7.2, 5.5, 3.7),
    "llama-3.1-8b": (8, 8192, 22.6, 17.7, 11.7),
}
SHAPE = StepShape(d_model=2048, d_sae=32768, k=32, batch_tokens=32768, dtype="bfloat16")


@pytest.fixture(scope="module")
def architectures():
    return {name: counted(AutoConfig.from_pretrained(ROOT / "configs" / "architectures" / name)) for name in KNOWN}


def pricing(model, name, **changes):
    expansion, batch, *_ = KNOWN[name]
    run = Footprint(
        model, model.num_layers - 1, 1, expansion * model.d_model, batch, 16, 1024, 131072, bytes_per_number=2
    )
    settings = {"gpus": GpuSetting(H100), "layers_per_token": 1} | changes
    return Pricing(run, 32, 10**9, 0, **settings)


def chunks(model, count):
    return equal([f"layers.{layer}" for layer in range(model.num_layers - 1)], count).groups


def pairs(model):
    """The first layer alone, then two by two: a lone last layer would need all of the text at full depth."""
    names = [f"layers.{layer}" for layer in range(model.num_layers - 1)]
    return [(names[0],), *zip(names[1::2], names[2::2], strict=True)]


@pytest.mark.parametrize("name", KNOWN)
def test_known_hours_come_out_within_four_percent(name, architectures):
    model, (*_, alone, half, every) = architectures[name], KNOWN[name]
    layers = model.num_layers - 1
    found = [
        pricing(model, name).price(chunks(model, layers)).seconds / 3600,
        pricing(model, name).price(chunks(model, (layers + 1) // 2)).seconds / 3600,
        pricing(model, name, layers_per_token="all").price(pairs(model)).seconds / 3600,
    ]
    assert found == pytest.approx([alone, half, every], rel=0.04)


def test_llama_does_not_fit_on_one_gpu_and_says_on_how_many_it_does(architectures):
    model = architectures["llama-3.1-8b"]
    groups, priced = chunks(model, 31), pricing(model, "llama-3.1-8b")
    price = priced.price(groups)
    cost = price.on_gpu
    assert not cost.fits
    assert cost.busiest_memory.sae_weights + cost.busiest_memory.adam_moments == pytest.approx(99.9e9, rel=0.01)
    fewest = fewest_gpus(priced.gpus, priced.gpu_run(groups), groups, price.ours)
    assert fewest == 5
    for count, fits in ((fewest - 1, False), (fewest, True)):
        spread = pricing(model, "llama-3.1-8b", gpus=GpuSetting(H100, count)).price(groups).on_gpu
        assert spread.fits == fits


def test_more_groups_never_take_fewer_hours_on_one_gpu(architectures):
    model = architectures["pythia-1b"]
    seconds = [pricing(model, "pythia-1b").price(chunks(model, count)).seconds for count in range(1, 16)]
    assert seconds == sorted(seconds)


def test_the_parts_follow_from_the_shape():
    step = step_parts(H100, SHAPE)
    assert step.encoder == pytest.approx(2 * 2048 * 32768 / (0.8 * 989e12))
    assert step.pre_activations == pytest.approx(6 * 32768 / (0.9 * 3.35e12))
    assert step.gathers == pytest.approx(8 * 32 * 2048 / (0.9 * 3.35e12))
    assert step.optimizer == pytest.approx(38 * 2 * 2048 * 32768 / (32768 * 0.9 * 3.35e12))
    assert step_parts(H100, replace(SHAPE, batch_tokens=2 * 32768)).optimizer == pytest.approx(step.optimizer / 2)
    assert step.launches == 0


def test_a_small_matrix_is_gathered_from_the_cache():
    small = StepShape(768, 12288, 32, 32768, "bfloat16")
    assert step_parts(H100, small).gathers == pytest.approx(8 * 32 * 768 / 5.5e12)


def test_many_active_latents_take_dense_products():
    many = step_parts(H100, replace(SHAPE, d_sae=4096, k=1024))
    assert many.gathers == pytest.approx(4 * many.encoder + 8 * 4096 / (0.9 * 3.35e12))


def test_tiny_steps_are_bound_by_their_launches():
    tiny = step_parts(H100, StepShape(128, 2048, 16, 512, "bfloat16"))
    assert tiny.total == pytest.approx(60 * 5e-6 / 512)
    assert model_seconds(H100, 1e3, 8, 4096, "bfloat16") == pytest.approx(8 * 20 * 5e-6 / 4096)


def test_two_stages_of_top_k_read_far_less_than_one():
    assert top_k_bytes(SHAPE) < 0.25 * (16 // 2) * 2 * 32768
    few = replace(SHAPE, d_sae=64, k=32)
    assert top_k_bytes(few) == 8 * 2 * 64  # more candidates than latents: one stage


@pytest.mark.parametrize("name", GPUS)
def test_float32_is_slower_than_bfloat16_on_every_gpu(name):
    assert step_parts(GPUS[name], replace(SHAPE, dtype="float32")).total > step_parts(GPUS[name], SHAPE).total


def test_an_unknown_gpu_is_refused_with_those_known():
    with pytest.raises(ConfigError, match="h100"):
        gpu_named("h1000")


# ---- the command


def planned(capsys, tmp_path, *flags):
    code = main(["plan", "configs/gpu-pythia-160m.toml", "--out", str(tmp_path / "run"), *flags])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_plan_without_weights_says_that_it_is_calculated(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, err = planned(capsys, tmp_path, "--gpu", "h100")
    assert code == 0, err
    assert out.count("not measured") >= 3 and "fewest hours" in out and "activation cache" in out
    code, out, _ = planned(capsys, tmp_path, "--gpu", "4090", "--gpus", "16", "--nodes", "2", "--json", "--overwrite")
    plan = json.loads(out)
    assert code == 0 and len(plan["gpu"]["ranks"]) == 16
    assert sum(rank["rows_share"] for rank in plan["gpu"]["ranks"]) == pytest.approx(1)
    assert plan["run"]["seconds"] == pytest.approx(
        max(rank["train_seconds"] + rank["read_seconds"] + rank["exchange_seconds"] for rank in plan["gpu"]["ranks"])
    )
    cache = plan["cache"]
    assert cache["size_bytes"] == cache_bytes(11, 10**9, 768)
    read, disk = plan["gpu"]["read_nanoseconds"] / 16, 1e9 * cache["size_bytes"] / 1e9 / cache["disk_rate"]
    assert disk > read and cache["trainings"] is None  # sixteen GPUs outrun one disk
    assert planned(capsys, tmp_path, "--gpus", "10", "--nodes", "4", "--overwrite")[0] == 2
