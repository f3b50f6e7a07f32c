"""docs/metrics.md and the records agree with the table of metrics."""

import re
from pathlib import Path

import pytest

from groupsae import metrics
from groupsae.analysis.run_records import RunRecords
from groupsae.metrics import (
    CANDIDATES,
    CIRCUITS,
    INTERPRETABILITY,
    INTERPRETATION,
    LOSSES,
    METRICS,
    RECONSTRUCTION,
    SIMILARITY,
    SUMMARY,
)
from groupsae.recipes.eval import PARTS
from groupsae.records import RunDirectory
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.measured import LossMetrics, ReconstructionMetrics
from groupsae.records.types.summary import SuiteSummary, SummaryRecord

TEXT = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
TABLES = (RECONSTRUCTION, LOSSES, SUMMARY, CANDIDATES, CIRCUITS, SIMILARITY, INTERPRETABILITY, INTERPRETATION)
NAMED = {*RECONSTRUCTION, *LOSSES, *CIRCUITS, *SIMILARITY, *INTERPRETABILITY, *INTERPRETATION, "density"}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_metric_is_described(name):
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("table", [SUMMARY, CANDIDATES])
def test_tables_of_suites_and_candidates_are_as_the_metrics_say(table):
    for metric in table.values():
        formula = metric.formula.replace("|", "\\|")
        cells = (f"`{metric.name}`", metric.title, metric.unit, metric.better, formula, metric.source)
        assert f"| {' | '.join(cells)} |" in TEXT


def test_a_name_means_one_thing():
    for table in TABLES[:4]:
        assert all(METRICS[name] is metric for name, metric in table.items())


def test_every_number_of_a_record_is_a_metric():
    fields = {
        ReconstructionMetrics: (RECONSTRUCTION, {"density", "intervals"}),
        LossMetrics: (LOSSES, {"intervals"}),
        SuiteSummary: (SUMMARY, {"name", "worst_layer", "intervals", "changes"}),
    }
    for record, (table, others) in fields.items():
        assert set(record.model_fields) == set(table) | others
    assert all(name in Candidate.model_fields or hasattr(Candidate, name) for name in CANDIDATES)


def test_every_metric_can_be_written():
    assert all(isinstance(metric.text(0.25), str) and metric.unit for table in TABLES for metric in table.values())


def test_every_part_and_file_is_named_and_is_there(done):
    assert all(part in TEXT for part in PARTS)
    for name in set(re.findall(r"`(eval/[\w/]+\.json)`", TEXT)) - {"eval/interpretation.json"}:  # needs a judge
        assert RunDirectory.open(done).read_json(name)


def test_the_units_in_the_files_are_those_of_the_metrics(done):
    run = RunDirectory.open(done)
    records = RunRecords.read(run)
    assert records.reconstruction.units == metrics.units(RECONSTRUCTION)
    assert records.losses.units == metrics.units(LOSSES)
    assert records.circuits.units == metrics.units(CIRCUITS)
    assert records.similarity.units == metrics.units(SIMILARITY)
    assert records.interpretability.units == metrics.units(INTERPRETABILITY)
    summary = SummaryRecord.read(run)
    of_seeds = {"seed_stability"}  # which a run of one seed has not
    assert summary.units == {name: unit for name, unit in metrics.units(SUMMARY).items() if name not in of_seeds}
    assert {"baseline", "groups"} <= set(summary.suites)
