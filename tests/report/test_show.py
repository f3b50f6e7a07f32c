"""`groupsae show` and the terminal's tables, from the record types."""

from __future__ import annotations

import json
import subprocess
import sys

from rich.console import Console

from groupsae.analysis.run_records import RunRecords
from groupsae.analysis.summary import compare
from groupsae.cli import tables
from groupsae.records import RunDirectory
from groupsae.records.types.lineage import Lineage, Origin
from groupsae.records.types.plan import PlanRecord
from groupsae.records.types.training import TrainRecord

WITHOUT = ("torch", "transformers", "matplotlib", "numpy", "scipy", "jinja2")


def text_of(table) -> str:
    """A table as it is printed into a file."""
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def show(run: RunDirectory, *flags: str) -> str:
    """What `groupsae show` prints where none of these libraries can be imported."""
    code = f"import sys; sys.modules |= dict.fromkeys({WITHOUT!r}); from groupsae.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "show", str(run.path), *flags]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_show_needs_neither_torch_nor_plotting(run: RunDirectory):
    shown = show(run)
    assert "baseline" in shown and "worst FVU" in shown
    assert "at equal tokens" in shown and "They would cost as much with" in " ".join(shown.split())


def test_show_gives_every_number_of_the_summary_as_json(run: RunDirectory):
    shown = json.loads(show(run, "--json"))
    found = compare(RunRecords.read(run)).suites.values()
    assert shown["suites"] == [one.model_dump(mode="json") for one in found]
    assert set(shown["saes"]) == set(TrainRecord.read(run).saes)


def test_the_seconds_of_training_add_up(run: RunDirectory):
    record = TrainRecord.read(run)
    assert f"{sum(record.seconds.values()):,.1f}" in text_of(tables.training(record))


def test_the_chosen_candidate_is_marked(run: RunDirectory):
    plan = PlanRecord.read(run)
    (marked,) = [line for line in text_of(tables.candidates(plan)).splitlines() if "->" in line]
    assert f" {plan.choice.num_groups} " in marked
    assert f"chosen: {plan.choice.num_groups} groups, {plan.why}" in tables.verdict(plan)
    assert "published" in text_of(tables.methods(plan))


def test_a_run_whose_flops_are_unknown_has_a_verdict(run: RunDirectory):
    plan = PlanRecord.read(run)
    unknown = plan.run.model_copy(update={"own_flops": None, "published_flops": None})
    assert "FLOP unknown" in tables.verdict(plan.model_copy(update={"run": unknown}))


def test_saes_that_ended_early_and_started_warm_are_named(run: RunDirectory):
    record = TrainRecord.read(run)
    name, sae = next(iter(record.saes.items()))
    assert tables.saved_tokens(record) == "" and tables.lineages(record) == []
    origin = Origin(
        hookpoint="layers.1", group="layers.1", direction="forward", sha256="0", lineage=Lineage(tokens=1234)
    )
    changed = sae.model_copy(update={"tokens": sae.tokens - 5, "origin": origin})
    warm = record.model_copy(update={"saes": record.saes | {name: changed}, "tokens_saved": 5})
    assert tables.saved_tokens(warm).startswith(f"ended early: 1 of {len(record.saes)} SAEs ({name}); 5 of ")
    (table,) = tables.lineages(warm)
    assert "1,234" in text_of(table) and "scratch" in text_of(table)
