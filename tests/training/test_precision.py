"""`precision = "auto"` and `model.dtype = "auto"`: measured once, recorded, and kept by what is resumed."""

import json
from dataclasses import asdict

import pytest
import torch
from training_cases import TRAIN, Stop, equal, run, stop_after, weights

from groupsae.recipes import context
from groupsae.training import precision
from groupsae.training.precision import bf16_speedup, choose_precision

CPU = torch.device("cpu")
AUTO = TRAIN.model_copy(update={"precision": "auto"})


@pytest.fixture
def machine(monkeypatch):
    """A machine whose bfloat16 products are so many times as fast as those in float32; None: it has none."""

    def with_speedup(speedup):
        monkeypatch.setattr(precision, "has_bf16", lambda device: speedup is not None)
        monkeypatch.setattr(precision, "bf16_speedup", lambda device: speedup)

    return with_speedup


@pytest.mark.parametrize(
    ("speedup", "chosen"), [(None, "float32"), (0.5, "float32"), (1.29, "float32"), (1.3, "bf16"), (12.0, "bf16")]
)
def test_bfloat16_is_taken_from_1_3_times_the_rate_on(machine, speedup, chosen):
    machine(speedup)
    assert choose_precision(CPU) == (chosen, speedup)


def test_the_rates_are_measured_once_in_a_process(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    bf16_speedup.cache_clear()
    first = bf16_speedup(CPU)
    assert 0.001 < first < 1000 and bf16_speedup(CPU) == first
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    bf16_speedup.cache_clear()
    assert bf16_speedup(CPU) is None
    bf16_speedup.cache_clear()


def test_the_fastest_turn_of_each_counts(monkeypatch):
    seconds = iter([3.0, 1.0, 2.0, 4.0, 5.0, 0.5] * 100)
    clock = [0.0]

    def work():
        clock[0] += next(seconds)

    monkeypatch.setattr(precision, "_now", lambda device: clock[0])
    found = precision._fastest_turns({torch.float32: work, torch.bfloat16: work}, CPU)
    assert found == {torch.float32: 2.0, torch.bfloat16: 0.5}


def test_auto_trains_as_the_precision_it_takes(machine):
    machine(2.0)
    auto, rounded, plain = (
        run(train=TRAIN.model_copy(update={"precision": name})) for name in ("auto", "bf16", "float32")
    )
    assert equal(weights(auto), weights(rounded)) and not equal(weights(auto), weights(plain))
    assert (auto.kernel.precision, auto.kernel.bf16_speedup) == ("bf16", 2.0)
    assert (rounded.kernel.precision, plain.kernel.precision) == ("bf16", "float32")
    assert all(sae.product_dtype is None for sae in auto.saes.values())
    machine(1.1)
    slow = run(train=AUTO)
    assert equal(weights(slow), weights(plain)) and slow.kernel.bf16_speedup == 1.1


@pytest.mark.parametrize(("before", "after"), [(2.0, 0.5), (2.0, None), (0.5, 2.0)])
def test_a_training_that_is_resumed_keeps_its_precision(tmp_path, machine, before, after):
    machine(before)
    never_stopped = run(train=AUTO)
    with pytest.raises(Stop):
        run(folder=tmp_path, train=AUTO, progress=stop_after(9))
    machine(after)
    resumed = run(folder=tmp_path, train=AUTO)
    assert equal(weights(resumed), weights(never_stopped))
    assert asdict(resumed.kernel) == asdict(never_stopped.kernel)


def test_what_was_chosen_is_told_and_recorded(machine, done, call):
    machine(2.0)
    code, _, err = call("train", done, "--precision", "auto", "--overwrite")
    assert code == 0 and "bf16, as products in bf16 are 2.00 times as fast as in float32" in err
    kernel = json.loads((done / "train.json").read_text())["kernel"]
    assert (kernel["precision"], kernel["bf16_speedup"]) == ("bf16", 2.0)


def test_activations_are_read_in_bfloat16_to_train_on_and_in_float32_to_evaluate(machine, here, call, monkeypatch):
    loaded = []

    def load_model(name, *, dtype, load=context.load_model, **options):
        loaded.append(dtype)
        return load(name, dtype=dtype, **options)

    monkeypatch.setattr(context, "load_model", load_model)
    machine(2.0)
    assert call("run", "tiny.toml", "--model.dtype", "auto", "--out", "runs/auto")[0] == 0
    assert loaded == ["bfloat16", "float32"]
    manifest = json.loads((here / "runs/auto/manifest.json").read_text())
    assert manifest["model"]["dtype"] == "bfloat16"
    machine(0.5)
    loaded.clear()
    assert call("train", "runs/auto", "--overwrite")[0] == 0
    assert call("eval", "runs/auto", "reconstruction", "--overwrite")[0] == 0
    assert loaded == ["bfloat16", "float32"]


def test_auto_takes_float32_for_all_where_that_is_as_fast(machine, here, call):
    machine(None)
    assert call("tokens", "tiny.toml", "--out", "runs/auto", "--model.dtype", "auto")[0] == 0
    assert json.loads((here / "runs/auto/manifest.json").read_text())["model"]["dtype"] == "float32"
