"""NaN and infinity in a step: the SAE is stopped with what caused it, or the step is left out and counted."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "training"))
from training_cases import SAE, STEPS, TRAIN, Log, equal, last_manifest, make_source, run, weights

from groupsae.config import as_architecture
from groupsae.errors import NumericalError
from groupsae.training import group_trainer as group_module
from groupsae.training.faults import SPIKE, FaultMonitor
from groupsae.training.fit import measure_scales
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.microbatch import backward_in_splits

SKIP = TRAIN.model_copy(update={"on_nan": "skip"})


class Faulty:
    """A source whose activations of one hookpoint are not numbers in some reads."""

    def __init__(self, reads, layer=0, value=torch.nan, tokens=0):
        self._source, self._reads, self._count = make_source(), reads, 0
        self._place, self._value = (layer, tokens), value

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, rows):
        self._count += 1
        x_LND = self._source.read(rows)
        if self._count in self._reads:
            x_LND[self._place] = self._value
        return x_LND


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_error_names_group_hookpoint_step_and_batch(tmp_path, value):
    with pytest.raises(NumericalError) as raised:
        run(folder=tmp_path, source=Faulty({9}, layer=1, value=value))
    message = str(raised.value)
    assert "Group layers.1: NaN or infinity in the activations of layers.1, at step" in message
    assert "in the batch after token" in message and "train.on_nan = 'skip'" in message
    assert last_manifest(tmp_path)


def test_skipped_steps_are_counted_and_every_other_group_is_as_it_would_have_been(tmp_path):
    log = Log()
    found = weights(run(source=Faulty({9}, layer=1), train=SKIP, log=log))
    expected = weights(run(train=SKIP))
    others = {name: tensor for name, tensor in found.items() if name.startswith("layers.0+2")}
    assert equal(others, {name: expected[name] for name in others})
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    assert not equal(found, expected)
    skipped = {
        name: sum(record["groups"][name]["skipped"] for record in log.records) for name in ("layers.0+2", "layers.1")
    }
    assert skipped["layers.0+2"] == 0 and 1 <= skipped["layers.1"] <= 4


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"])
def test_a_skipped_step_changes_neither_weights_nor_moments_nor_counters(architecture, fault):
    group, x_ND, layers_N = _one_layer(as_architecture(SAE, architecture))
    for _ in range(3):
        group.step(x_ND, layers_N, 0.0)
    before = {name: tensor.clone() for name, tensor in group.state().items()}
    group.step(x_ND * fault, layers_N, 0.1)
    after = group.state()
    for name, tensor in before.items():
        if name == "sae.W_dec":  # its rows are given unit norm once more
            torch.testing.assert_close(after[name], tensor)
        elif name not in ("faults", "schedule"):  # the batch is seen, if not learnt from
            assert torch.equal(after[name], tensor), name


def _one_layer(sae=SAE):
    """A group of one layer, and a batch: x_ND, layers_N."""
    source = make_source()
    x_ND = source.read([1, 2])[1]
    group = GroupTrainer(("layers.1",), measure_scales(source, 100), source.d_model, sae, SKIP, 0)
    return group, x_ND, torch.zeros(len(x_ND), dtype=torch.long)


def test_a_gradient_that_is_not_finite_is_skipped_although_the_loss_is(monkeypatch):
    backward = torch.autograd.Function

    class Broken(backward):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.inf

    group, x_ND, layers_N = _one_layer()
    losses = group.sae.losses

    def broken(*arguments):
        found = losses(*arguments)
        object.__setattr__(found, "total", Broken.apply(found.total))
        return found

    monkeypatch.setattr(group.sae, "losses", broken)
    before = group.sae.W_enc.clone()
    group.step(x_ND, layers_N, 0.0)
    assert torch.equal(group.sae.W_enc, before)
    assert "in loss or gradient, at step 1, in the batch after token 0" in group.faults.first_fault()


def test_training_stops_where_nothing_is_left_after_skipping(tmp_path):
    with pytest.raises(NumericalError, match=r"Group layers\.1"):
        run(folder=tmp_path, source=Faulty(range(9, 99), layer=1, tokens=slice(None)), train=SKIP)


def test_skipping_goes_on_exactly_from_a_checkpoint(tmp_path):
    """The count of faults is part of the state; the reads from step 8 on are those of an unbroken run."""
    from training_cases import Stop, state_on_disk, stop_after

    whole, again = tmp_path / "whole", tmp_path / "again"
    run(folder=whole, train=SKIP)
    with pytest.raises(Stop):
        run(folder=again, train=SKIP, progress=stop_after(9))
    run(folder=again, train=SKIP)
    assert equal(state_on_disk(whole)[1], state_on_disk(again)[1])
    assert state_on_disk(again)[0]["step"] == STEPS


# ---- spikes


def look(watch, loss, step=0, z_ND=None):
    z_ND = torch.ones(2, 3) if z_ND is None else z_ND
    layers_N = torch.tensor([0, 1])
    return watch.check(torch.tensor(loss), torch.tensor(1.0), z_ND, layers_N, step, 64.0 * step)


def test_losses_that_jump_are_counted_against_the_interval_before():
    watch = FaultMonitor(("layers.4", "layers.7"), torch.device("cpu"))
    for loss in (1.0, 3.0, 50.0):  # nothing to compare with yet
        look(watch, loss)
    assert watch.read() == {"skipped": 0, "spikes": 0, "largest_loss": 50.0}
    for loss in (1.0, 18.0 * SPIKE - 0.1, 18.0 * SPIKE + 0.1, float("nan"), float("inf")):
        look(watch, loss)
    assert watch.read() == {"skipped": 2, "spikes": 1, "largest_loss": pytest.approx(18 * SPIKE + 0.1)}


def test_a_spike_stands_in_the_log_line_of_its_interval_and_in_no_other(monkeypatch):
    steps, log = itertools.count(1), Log()

    def jumping(*arguments):
        outcome = backward_in_splits(*arguments)
        return replace(outcome, total=outcome.total * 10) if next(steps) == 9 else outcome

    monkeypatch.setattr(group_module, "backward_in_splits", jumping)
    run([("layers.1",)], log=log)
    readings = {record["step"]: record["groups"]["layers.1"] for record in log.records}
    (at,) = (step for step, reading in readings.items() if reading["spikes"])
    assert 9 <= at < 12 and readings[at]["spikes"] == 1
    assert readings[at]["largest_loss"] == max(reading["largest_loss"] for reading in readings.values())


def test_the_first_fault_is_kept_with_the_hookpoint_that_caused_it():
    watch = FaultMonitor(("layers.4", "layers.7"), torch.device("cpu"))
    assert watch.first_fault() is None
    look(watch, float("nan"), step=2, z_ND=torch.tensor([[1.0, 1.0], [1.0, torch.inf]]))
    look(watch, float("nan"), step=5, z_ND=torch.full((2, 2), torch.nan))
    watch.read()
    assert (
        watch.first_fault() == "NaN or infinity in the activations of layers.7, at step 3, in the batch after token 128"
    )
