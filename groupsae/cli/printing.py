"""Results on stdout: tables, or JSON for scripts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from groupsae.records import RunDirectory


def print_json(value: Any) -> None:
    """One value, in one line."""
    print(json.dumps(value))


def print_results(run: RunDirectory, as_json: bool) -> None:
    """The stages of a run and its suites, with cost and quality as far as they are known."""
    from groupsae.report.summary import summarize

    suites = summarize(run)
    train = run.read_json("train.json") if run.file("train.json").exists() else {"groups": {}, "num_tokens": 0}
    if as_json:
        values = {"run": str(run.path), "stages": run.stages(), "suites": [asdict(suite) for suite in suites]}
        print_json(values | {"saes": train["groups"], "tokens_saved": train.get("tokens_saved", 0)})
        return
    from groupsae import tables

    tables.show(tables.stages(run), *([tables.suites(suites)] if suites else []), *tables.lineages(train))
    if tables.saved_tokens(train):
        print(tables.saved_tokens(train))
    _print_report(run, "report/index.html")


def print_training(run: RunDirectory) -> None:
    """What training took."""
    from groupsae import tables

    tables.show(tables.training(run.read_json("train.json")))


def print_comparison(run: RunDirectory, against: Path, as_json: bool) -> None:
    """The suites of a run and of another beside them."""
    from groupsae.report.comparison import label_of, read_against

    found = next(one for one in read_against(run) if one.label == label_of(against))
    if as_json:
        print_json({"run": str(run.path), **found.as_record()})
        return
    from groupsae import tables

    tables.show(tables.suites(found.summaries))


def print_plan(run: RunDirectory, as_json: bool) -> None:
    """What every division costs, and what is chosen."""
    plan = run.read_json("plan.json")
    if as_json:
        print_json(plan)
        return
    from groupsae import tables

    tables.show(tables.prices(plan), *([tables.methods(plan)] if len(plan["methods"]) > 1 else []))
    print(tables.verdict(plan))


def print_experiment(run: RunDirectory, as_json: bool) -> None:
    """What the transfer experiment found."""
    from groupsae.report.transfer import RECORD, TransferResults

    record = run.read_json(RECORD)
    if as_json:
        print_json(record)
        return
    from groupsae import tables

    tables.show(*tables.transfer(TransferResults(record)))
    _print_report(run, "report/transfer.html")


def _print_report(run: RunDirectory, name: str) -> None:
    if run.file(name).exists():
        print(f"report: {run.file(name)}")
