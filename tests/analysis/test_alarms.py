"""What a run is warned of, from typed records."""

import pytest

from groupsae.analysis.alarms import alarms
from groupsae.analysis.run_records import RunRecords
from groupsae.config import RunConfig
from groupsae.records.types.measured import ReconstructionMetrics
from groupsae.records.types.reconstruction import ReconstructionRecord
from groupsae.records.types.suites import SuitesRecord
from groupsae.records.types.training import LoggedSAE, MetricsLine

CONFIG = RunConfig(sae={"architecture": "topk", "k": 16})
LAYERS = ("layers.0", "layers.1")


def metrics(fvu=0.1, dead_share=0.0, l0=16.0):
    others = dict.fromkeys(ReconstructionMetrics.model_fields, 0.5)
    return ReconstructionMetrics(
        **others | {"fvu": fvu, "dead_share": dead_share, "l0": l0, "density": (), "intervals": {}}
    )


def records(first=None, second=None, log=()):
    """A run with one SAE per layer, and what was measured at its two layers."""
    layers = dict(zip(LAYERS, (first or metrics(), second or metrics()), strict=True))
    reconstruction = ReconstructionRecord(
        scope="",
        num_tokens=1,
        num_rows=1,
        suites={"baseline": layers},
        layers={},
        groups={},
        compared_with="baseline",
        differences={},
        units={},
        density_edges=(),
    )
    suites = SuitesRecord({"baseline": tuple((name,) for name in LAYERS)})
    return RunRecords("run", trained=suites, reconstruction=reconstruction, log=log)


def logged(*fvus):
    rest = dict.fromkeys(LoggedSAE.model_fields, 0) | {"learning_rate": 1e-3}
    return tuple(
        MetricsLine(step=step, tokens=step, groups={"layers.0": LoggedSAE(**rest | {"fvu": fvu})})
        for step, fvu in enumerate(fvus, 1)
    )


def test_a_run_that_went_well_raises_none():
    assert alarms(records(log=logged(0.5, 0.3, 0.31)), CONFIG) == ()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (metrics(fvu=1.0), ("1.000 at layers.1", "train.learning_rate")),
        (metrics(dead_share=0.51), ("51% of the latents are dead at layers.1", "sae.dead_after_tokens")),
        (metrics(l0=14.3), ("L0 is 14.3 at layers.1", "sae.k = 16")),
        (metrics(l0=17.7), ("L0 is 17.7 at layers.1",)),
    ],
)
def test_each_fault_gives_one_line_with_the_layer_and_the_key_to_turn(bad, words):
    (line,) = alarms(records(second=bad), CONFIG)
    assert all(word in line for word in words)


@pytest.mark.parametrize("fine", [metrics(fvu=0.999), metrics(dead_share=0.5), metrics(l0=14.5), metrics(l0=17.5)])
def test_just_inside_the_bounds_there_is_none(fine):
    assert alarms(records(second=fine), CONFIG) == ()


def test_the_center_is_only_advised_where_it_is_off():
    off = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"center": False})})
    assert "train.center = true" in alarms(records(metrics(fvu=1.2)), off)[0]
    assert "train.center" not in alarms(records(metrics(fvu=1.2)), CONFIG)[0]


def test_a_loss_that_rises_is_named_with_where_it_was():
    (line,) = alarms(records(log=logged(0.5, 0.2, 0.4)), CONFIG)
    assert "rose to 0.4000 at layers.0, from 0.2000" in line


def test_before_anything_is_trained_there_is_none():
    assert alarms(RunRecords("run"), CONFIG) == ()
