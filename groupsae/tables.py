"""What a run's records look like in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from groupsae.records import RunDirectory
from groupsae.report.figures.transfer import TITLES
from groupsae.report.summary import SuiteSummary
from groupsae.report.transfer import Mean, TransferResults

SUITE_ROWS: dict[str, Callable[[SuiteSummary], str]] = {
    "SAEs": lambda s: f"{s.num_saes} for {s.num_layers} layers",
    "FVU, mean over layers": lambda s: number(s.mean_fvu, ".4f"),
    "FVU, worst layer": lambda s: number(s.worst_fvu, ".4f") + (f" ({s.worst_layer})" if s.worst_layer else ""),
    "delta CE, mean (nats)": lambda s: number(s.mean_delta_ce, ".4f"),
    "delta CE, all layers at once": lambda s: number(s.all_layers_delta_ce, ".4f"),
    "KL, mean (nats)": lambda s: number(s.mean_kl, ".4f"),
    "CE score, mean": lambda s: number(s.mean_ce_score, ".4f"),
    "L0, mean": lambda s: number(s.mean_l0, ".1f"),
    "circuits, all latents, errors removed": lambda s: number(s.circuit_ceiling, ".2f"),
    "concordance with layers' own SAEs": lambda s: number(s.mean_concordance, ".2f"),
    "dead latents": lambda s: number(s.mean_dead_share, ".1%"),
    "MFLOP per token (paper's model)": lambda s: number(s.mflop_per_token, ",.4g"),
    "TFLOP in all (paper's model)": lambda s: number(s.total_pflop and s.total_pflop * 1000, ",.3g"),
    "seconds of training": lambda s: number(s.seconds, ",.1f"),
}


def show(*tables: Table) -> None:
    """Print tables to stdout."""
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no edge
        console = Console(width=160)
    for table in tables:
        console.print(table)


def number(value: float | None, form: str) -> str:
    """A number in this form; a dash for one that is not known."""
    return "-" if value is None else format(value, form)


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def stages(run: RunDirectory) -> Table:
    """What is done, stale or missing, and the command for what is missing."""
    table = _table(str(run.path), ("stage", "status", "seconds", "files"), right=("seconds",))
    for stage, facts in run.stages().items():
        files = list(facts.get("files", {}))
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        advice = shown if facts["status"] == "done" else f"groupsae {stage} {run.path}"
        table.add_row(stage, facts["status"], number(facts.get("seconds"), ".1f"), advice)
    return table


def training(facts: dict[str, Any]) -> Table:
    """Where the seconds of training went."""
    total = sum(facts["seconds"].values())
    table = _table("training", ("", "seconds", "share"), right=("seconds", "share"))
    for part, seconds in (*facts["seconds"].items(), ("all", total)):
        table.add_row(part, f"{seconds:,.1f}", f"{seconds / total:.1%}" if total else "-")
    return table


def suites(summaries: Sequence[SuiteSummary]) -> Table:
    """The suites side by side."""
    names = [suite.name for suite in summaries]
    table = _table("suites", ("", *names), right=names)
    for label, value in SUITE_ROWS.items():
        table.add_row(label, *map(value, summaries))
    return table


def lineages(train: dict[str, Any]) -> list[Table]:
    """A table of what each SAE started from, if any did not start from scratch."""
    origins = {name: facts.get("origin") for name, facts in train["groups"].items()}
    known = [origin for origin in origins.values() if origin]
    if not known:
        return []
    where = " of ".join(part for part in (known[0]["suite"], known[0]["run"]) if part)
    table = _table(
        f"started {known[0]['direction']} from {where or 'a suite in memory'}",
        ("SAE", "tokens", "after", "tokens before"),
        right=("tokens", "tokens before"),
    )
    for name, origin in origins.items():
        source, before = "scratch", "0"
        if origin:
            served = "" if origin["group"] == origin["hookpoint"] else f" at {origin['hookpoint']}"
            source = origin["group"] + served
            before = f"{_all_tokens(origin['lineage']):,}" if origin["lineage"] else "-"
        table.add_row(name, f"{train['groups'][name]['tokens']:,}", source, before)
    return [table]


def saved_tokens(train: dict[str, Any]) -> str:
    """What ending early has saved, in words; empty if no SAE ended early."""
    wanted, groups = train["num_tokens"], train["groups"]
    early = [name for name, facts in groups.items() if facts.get("tokens", wanted) < wanted]
    if not early:
        return ""
    saved = f"{train['tokens_saved']:,} of {wanted * len(groups):,} SAE tokens saved"
    return f"ended early: {len(early)} of {len(groups)} SAEs ({', '.join(early)}); {saved}"


def _all_tokens(lineage: dict[str, Any] | None) -> int:
    if lineage is None:
        return 0
    return lineage["tokens"] + _all_tokens((lineage["origin"] or {}).get("lineage"))


def prices(plan: dict[str, Any]) -> Table:
    """Every number of groups with its price, the chosen one marked.

    FLOPs are per token of the language model, in millions, which is PFLOP per 1e9 tokens.
    """
    columns = ("", "G", "AMAD", "largest", "paper MFLOP", "own MFLOP", "saving", "time", "memory", "disk", "FVU")
    table = _table(f"what {plan['method']} partitions cost, trained alone", columns, right=columns[1:])
    dearest = max(row["mflop_per_token"]["total"] for row in plan["candidates"])
    for row in plan["candidates"]:
        chosen = row["groups"] == plan["choice"]["groups"]
        increase, paper = row["fvu_increase"], row["mflop_per_token"]["total"]
        table.add_row(
            "->" if chosen else "",
            str(row["num_groups"]),
            number(row.get("amad"), ".3f"),
            number(row.get("largest_diameter"), ".3f"),
            f"{paper:,.1f}",
            f"{row['own_mflop_per_token']['total']:,.1f}",
            f"{1 - paper / dearest:.1%}",
            duration(row["seconds"]),
            size(row["device_bytes"] or row["host_bytes"]),
            size(row["disk_bytes"]),
            _fvu(row, increase),
            style="bold" if chosen else None,
        )
    return table


def methods(plan: dict[str, Any]) -> Table:
    """AMAD, size-weighted AMAD and largest diameter of every method's partitions."""
    names = list(plan["methods"])
    table = _table("AMAD / size-weighted / largest, by method", ("G", *names), right=("G", *names))
    for rows in zip(*plan["methods"].values(), strict=True):
        cells = [f"{row['amad']:.3f} / {row['size_weighted_amad']:.3f} / {row['largest_diameter']:.3f}" for row in rows]
        table.add_row(str(rows[0]["num_groups"]), *cells)
    return table


def transfer(results: TransferResults) -> list[Table]:
    """The looks at every direction, warm / from scratch, and the ways to spend a budget."""
    columns = ["tokens", "FVU", "delta CE", "CE score", "L0", "FVU at one L0", "progress: FVU, delta CE, CE score"]
    tables = []
    for direction, looks in results.looks.items():
        table = _table(f"{TITLES[direction]}; warm / from scratch", columns, right=columns)
        for look in looks:
            matched = _pair(*(look.matched_fvu or (None, None)), ".4f")
            progress = "  ".join(number(value, ".2f") for value in look.progress.values())
            scratch = look.scratch or Mean(None, None, None, None)
            pairs = [_pair(*values, form) for *values, form in _looked(look.transfer, scratch)]
            table.add_row(f"{look.tokens:,}" if look.tokens else "zero-shot", *pairs, matched, progress)
        base = results.base_mean(direction)
        table.add_row("base", *(number(value, form) for value, _, form in _looked(base, base)), "", "", style="bold")
        tables.append(table)
    return [*tables, _budgets(results)]


def _looked(one: Mean, other: Mean) -> list[tuple[float | None, float | None, str]]:
    forms = {"fvu": ".4f", "delta_ce": ".4f", "ce_score": ".4f", "l0": ".1f"}
    return [(getattr(one, key), getattr(other, key), form) for key, form in forms.items()]


def _pair(one: float | None, other: float | None, form: str) -> str:
    return " / ".join(number(value, form) for value in (one, other) if value is not None)


def _budgets(results: TransferResults) -> Table:
    columns = ("all layers", "tokens per SAE", "TFLOP", "time", "FVU", "delta CE", "CE score", "L0")
    table = _table("ways to spend a budget", columns, right=columns[1:])
    for row in results.budgets():
        scores = [number(value, form) for value, _, form in _looked(row.mean, row.mean)]
        table.add_row(row.name, row.tokens, f"{row.flops / 1e12:.3g}", duration(row.seconds), *scores)
    return table


def verdict(plan: dict[str, Any]) -> str:
    """The choice in words, and what this run takes in all."""
    choice, run = plan["choice"], plan["run"]
    total = sum(len(groups) for groups in plan["partitions"].values())
    lines = [
        f"chosen: {choice['num_groups']} groups, {choice['why']}",
        f"this run ({' and '.join(plan['partitions'])}, {total} SAEs or fewer where they share): "
        f"{run['total_flops']['own']:.3g} FLOP by our count, {run['total_flops']['paper']:.3g} by the paper's; "
        f"{duration(run['seconds'])}; memory {size(run['device_bytes'] or run['host_bytes'])}; "
        f"disk {size(run['disk_bytes'])}",
    ]
    return "\n".join(lines)


def _fvu(row: dict[str, Any], increase: dict[str, float] | None) -> str:
    if row.get("fvu"):
        return f"{row['fvu']['value']:.3f} ({row['fvu']['low']:.3f} to {row['fvu']['high']:.3f})"
    if increase is None:
        return "-"
    return f"{increase['value']:+.0%} ({increase['low']:+.0%} to {increase['high']:+.0%})"


def _table(title: str, columns: Sequence[str], right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column != "files")
    return table
