"""docs/metrics.md names every metric that an evaluation writes, and no other file than it writes."""

import json
import re
from pathlib import Path

import pytest

from groupsae.evaluation.circuits import UNITS as CIRCUITS
from groupsae.evaluation.losses import METRICS as LOSSES
from groupsae.evaluation.reconstruction import METRICS as RECONSTRUCTION
from groupsae.evaluation.similarity import UNITS as SIMILARITY
from groupsae.recipes.evaluate import PARTS

TEXT = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted({*RECONSTRUCTION, *LOSSES, *CIRCUITS, *SIMILARITY, "density"}))
def test_every_metric_is_described(name):
    assert f"`{name}`" in TEXT


def test_every_part_and_file_is_named_and_is_there(done):
    assert all(part in TEXT for part in PARTS)
    for name in set(re.findall(r"`(eval/[\w/]+\.json)`", TEXT)):
        assert json.loads((done / name).read_text())


def test_the_keys_it_names_are_in_the_files(done):
    reconstruction, losses, summary = (
        json.loads((done / f"eval/{name}.json").read_text()) for name in ("reconstruction", "losses", "summary")
    )
    for record in (reconstruction, losses):
        assert {"suites", "layers", "groups", "differences", "units", "other_scope", "scope"} <= set(record)
        assert set(record["units"]) == set(RECONSTRUCTION if record is reconstruction else LOSSES)
    assert "density_edges" in reconstruction and "all_layers" in losses
    circuits, similarity = (json.loads((done / f"eval/{name}.json").read_text()) for name in ("circuits", "similarity"))
    assert (circuits["units"], similarity["units"]) == (CIRCUITS, SIMILARITY)
    assert {"circuit_ceiling", "mean_concordance"} <= set(summary["suites"]["groups"])
    assert {"fvu", "flops_at_fvu", "cost_ratio", "flops", "fvu_at_flops"} <= set(summary["readings"][0])
