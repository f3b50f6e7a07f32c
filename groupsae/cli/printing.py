"""Results on stdout: tables, or JSON for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from groupsae.records import RunDirectory


def print_json(value: Any) -> None:
    """One value, in one line."""
    print(json.dumps(value))


def print_results(run: RunDirectory, as_json: bool) -> None:
    """The stages of a run and its suites, with cost and quality as far as they are known."""
    from groupsae.analysis.run_records import RunRecords
    from groupsae.analysis.summary import compare

    records = RunRecords.read(run)
    found, train = compare(records), records.train
    suites = list(found.suites.values())
    if as_json:
        values = {
            "run": str(run.path),
            "stages": {name: one.model_dump(exclude_unset=True) for name, one in run.stages().items()},
            "suites": [one.model_dump(mode="json") for one in suites],
        }
        values |= {"sweep": [one.model_dump(mode="json") for one in found.sweep]} if found.sweep else {}
        saes = {name: sae.model_dump(mode="json") for name, sae in train.saes.items()} if train else {}
        print_json(values | {"saes": saes, "tokens_saved": train.tokens_saved if train else 0})
        return
    from groupsae.cli import tables

    lineages = [*tables.ranks(train), *tables.lineages(train)] if train else []
    side_by_side = tables.sweep(found.sweep) if found.sweep else tables.suites(suites)
    scores = tables.latent_scores(records)
    tables.show(tables.stages(run), *([side_by_side] if suites else []), *scores, *lineages)
    if train and tables.saved_tokens(train):
        print(tables.saved_tokens(train))
    _print_page(run, "report", "report/index.html")
    _print_page(run, "browser", "browser/index.html")


def print_training(run: RunDirectory) -> None:
    """What training took."""
    from groupsae.cli import tables
    from groupsae.records.types.training import TrainRecord

    record = TrainRecord.read(run)
    tables.show(tables.training(record), *tables.ranks(record))


def print_comparison(run: RunDirectory, against: Path, as_json: bool) -> None:
    """The suites of a run and of another beside them."""
    from groupsae.analysis.summary import against_path, label_of
    from groupsae.records.types.summary import SummaryRecord

    found = SummaryRecord.read(run, against_path(label_of(against)))
    if as_json:
        print_json({"run": str(run.path), **found.model_dump(mode="json")})
        return
    from groupsae.cli import tables

    tables.show(tables.suites(list(found.suites.values())))


def print_plan(run: RunDirectory, as_json: bool) -> None:
    """What every candidate costs, and which one is chosen."""
    from groupsae.records.types.plan import PlanRecord

    plan = PlanRecord.read(run)
    if as_json:
        print_json(plan.model_dump(mode="json"))
        return
    from groupsae.cli import tables

    shown = [tables.candidates(plan), *([tables.methods(plan)] if len(plan.candidates) > 1 else [])]
    shown += [tables.gpu_parts(plan.gpu)] if plan.gpu else []
    tables.show(*shown)
    print(tables.verdict(plan))
    if plan.gpu:
        print(tables.gpu_verdict(plan.gpu))
    if plan.cache:
        print(tables.cache_verdict(plan.cache))


def _print_page(run: RunDirectory, what: str, name: str) -> None:
    if run.file(name).exists():
        print(f"{what}: {run.file(name)}")
