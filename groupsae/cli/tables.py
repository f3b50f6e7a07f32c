"""The records of a run as tables in a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from textwrap import wrap

from rich.console import Console
from rich.table import Table

from groupsae.analysis.candidates import view_record
from groupsae.analysis.frames import Frame, candidate_frame, equal_tokens
from groupsae.analysis.latent_scores import interpretability_frame
from groupsae.analysis.run_records import RunRecords
from groupsae.metrics import METRICS, fixed
from groupsae.records import RunDirectory
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.plan import CachePlan, GpuPlan, PlanRecord
from groupsae.records.types.summary import OverSeeds, SettingSummary, SuiteSummary
from groupsae.records.types.training import TrainRecord
from groupsae.units import format_bytes, format_duration

SUITE_ROWS = (
    "mean_fvu", "worst_fvu", "mean_delta_ce", "all_layers_delta_ce", "mean_kl", "mean_ce_score", "mean_l0",
    "circuit_ceiling", "mean_concordance", "mean_dead_share", "num_tokens", "published_mflop", "own_mflop",
    "published_pflop", "seconds",
)  # fmt: skip
"""The metrics of the table of suites."""
_NOT_IN_A_TERMINAL = ("chosen_by", "size_weighted_amad", "published_saving")
"""Columns of candidates that a terminal has no room for."""


def show(*tables: Table) -> None:
    """Print tables to stdout."""
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no edge
        console = Console(width=160)
    for table in tables:
        console.print(table)


def stages(run: RunDirectory) -> Table:
    """What is done, stale or missing, and the command for what is missing."""
    table = titled_table(str(run.path), ("stage", "status", "seconds", "files"), right=("seconds",))
    for stage, facts in run.stages().items():
        files = list(facts.files)
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        advice = shown if facts.status == "done" else f"groupsae {stage} {run.path}"
        table.add_row(stage, facts.status, fixed(facts.seconds, 1), advice)
    return table


def training(record: TrainRecord) -> Table:
    """Where the seconds of training went."""
    total = sum(record.seconds.values())
    table = titled_table("training", ("", "seconds", "share"), right=("seconds", "share"))
    for part, seconds in (*record.seconds.items(), ("all", total)):
        table.add_row(part, f"{seconds:,.1f}", f"{seconds / total:.1%}" if total else "-")
    return table


def ranks(train: TrainRecord) -> list[Table]:
    """What each of several processes did with its time in training; no table for one process."""
    if not train.ranks:
        return []
    parts = ("reading", "exchanging", "training", "saving", "waiting", "other")
    table = titled_table("ranks, seconds", ("rank", "host", *parts), right=parts)
    for number, one in enumerate(train.ranks):
        table.add_row(str(number), one.host, *(f"{getattr(one, part):,.1f}" for part in parts))
    return [table]


def suites(summaries: Sequence[SuiteSummary]) -> Table:
    """The suites side by side; below it at equal what they are compared."""
    names = [suite.name for suite in summaries]
    table = titled_table("suites", ("", *names), right=names)
    table.add_row("SAEs", *(f"{one.num_saes} for {one.num_layers} layers" for one in summaries))
    for name in SUITE_ROWS:
        if any(getattr(one, name) is not None for one in summaries):
            table.add_row(METRICS[name].title, *(_suite_value(one, name) for one in summaries))
    table.caption, table.caption_justify = equal_tokens(summaries) or None, "left"
    return table


def sweep(settings: Sequence[SettingSummary]) -> Table:
    """The settings of a sweep, a row for each kind of suite, over its seeds."""
    names = ("mean_l0", "mean_fvu", "mean_delta_ce", "seed_stability")
    titles = [METRICS[name].title for name in names]
    table = titled_table(
        "sweep", ("setting", "suite", "seeds", "k", "latents", *titles), right=("k", "latents", *titles)
    )
    for one in settings:
        values = [_over_seeds(getattr(one, name), name) for name in names]
        row = (one.setting, one.kind, str(len(one.suites)), str(one.k), f"{one.d_sae:,}", *values)
        table.add_row(*row, style="bold" if one.on_front else None)
    table.caption, table.caption_justify = (
        "Means over seeds (smallest to largest). Found again: by another seed.",
        "left",
    )
    return table


def _over_seeds(found: OverSeeds | float | None, metric: str) -> str:
    text = METRICS[metric].text
    if not isinstance(found, OverSeeds):
        return "-" if found is None else text(found)
    return text(found.mean) + (f" ({text(found.low)} to {text(found.high)})" if found.low != found.high else "")


def _suite_value(summary: SuiteSummary, name: str) -> str:
    value = getattr(summary, name)
    text = "-" if value is None else METRICS[name].text(value)
    return f"{text} ({summary.worst_layer})" if name == "worst_fvu" and summary.worst_layer else text


def latent_scores(records: RunRecords) -> list[Table]:
    """Scores of latents that need no judge, the suites below each other, if they have been measured."""
    frame = interpretability_frame(records)
    return [_framed(frame, frame.title, ())] if frame else []


def lineages(train: TrainRecord) -> list[Table]:
    """A table of what each SAE started from, if any did not start from scratch."""
    known = [sae.origin for sae in train.saes.values() if sae.origin]
    if not known:
        return []
    where = " of ".join(part for part in (known[0].suite, known[0].run) if part)
    table = titled_table(
        f"started {known[0].direction} from {where or 'a suite in memory'}",
        ("SAE", "tokens", "after", "tokens before"),
        right=("tokens", "tokens before"),
    )
    for name, sae in train.saes.items():
        source, before = "scratch", "0"
        if sae.origin:
            served = "" if sae.origin.group == sae.origin.hookpoint else f" at {sae.origin.hookpoint}"
            source = sae.origin.group + served
            before = f"{sae.origin.lineage.total_tokens:,}" if sae.origin.lineage else "-"
        table.add_row(name, f"{sae.tokens:,}", source, before)
    return [table]


def saved_tokens(train: TrainRecord) -> str:
    """How many tokens SAEs that ended early did not need; empty if none ended early."""
    wanted, saes = train.num_tokens, train.saes
    early = [name for name, sae in saes.items() if sae.tokens < wanted]
    if not early:
        return ""
    saved = f"{train.tokens_saved:,} of {wanted * len(saes):,} SAE tokens saved"
    return f"ended early: {len(early)} of {len(saes)} SAEs ({', '.join(early)}); {saved}"


def candidates(plan: PlanRecord) -> Table:
    """Every number of groups with its cost, the chosen one marked. FLOPs are per SAE token."""
    title = f"what {plan.method} partitions cost, each trained alone; MFLOP are per token that each SAE sees"
    if plan.gpu is not None:
        title += f"; time and memory of {_gpus(plan.gpu)} are calculated, not measured"
    return _framed(candidate_frame(view_record(plan)), title, _NOT_IN_A_TERMINAL)


def gpu_parts(gpu: GpuPlan) -> Table:
    """Calculated nanoseconds per token, by part of the work."""
    table = titled_table(f"{gpu.name}: calculated, not measured", ("", "ns per token"), right=("ns per token",))
    table.add_row("language model, per token of text", f"{gpu.read_nanoseconds:,.1f}")
    for name, value in gpu.step_nanoseconds.items():
        table.add_row(f"  {name.replace('_', '-')}", f"{value:,.1f}")
    table.add_row("one SAE's step, per token it sees", f"{sum(gpu.step_nanoseconds.values()):,.1f}")
    return table


def gpu_verdict(gpu: GpuPlan) -> str:
    """What the run takes on these GPUs, in words."""
    memory = f"{format_bytes(gpu.memory_bytes)} of {format_bytes(gpu.usable_bytes)} usable"
    fewest = f"it fits on {gpu.fewest_gpus} or more" if gpu.fewest_gpus else "it fits on no number of these"
    lines = [
        f"on {_gpus(gpu)}, calculated and not measured: {format_duration(gpu.seconds)}; memory per GPU {memory}"
        + ("" if gpu.fits else f": it does not fit, and time is as if it did; {fewest}"),
        f"fewest hours at equal tokens per SAE: {_groups(gpu.cheapest_groups)}"
        + ("" if gpu.fits or gpu.cheapest_fitting_groups is None else
           f"; of those that fit: {_groups(gpu.cheapest_fitting_groups)}"),
    ]  # fmt: skip
    if gpu.num_gpus > 1:
        only = sum(not rank.groups for rank in gpu.ranks)
        received = max(rank.received_bytes for rank in gpu.ranks)
        lines += [
            f"one mesh: {gpu.useful_share:.0%} of the GPUs' time is useful work ({gpu.overlapped_share:.0%}, "
            f"{format_duration(gpu.overlapped_seconds)}, if exchanging hides behind training); busiest over mean "
            f"{gpu.imbalance:.2f}; a GPU receives up to {format_bytes(received)}; {only} only read",
            f"a job per group: {gpu.array_share:.0%} of the work is useful, the rest reads the same text again; "
            f"{format_duration(gpu.array_seconds)} on as many GPUs",
        ]
    return "\n".join(lines)


def cache_verdict(cache: CachePlan) -> str:
    """What an activation cache takes and when it pays, in words."""
    pays = "it never pays: the disk is slower than the language model"
    if cache.trainings is not None:
        pays = f"it pays from {cache.trainings} trainings on" if cache.trainings > 1 else "it pays at once"
    return (
        f"activation cache: {format_bytes(cache.size_bytes)} in {cache.dtype} for {cache.num_tokens:,} tokens; with a "
        f"disk of {cache.disk_rate / 1e9:g} GB/s (assumed), {pays}"
    )


def _gpus(gpu: GpuPlan) -> str:
    where = f" on {gpu.num_nodes} nodes" if gpu.num_nodes > 1 else ""
    return f"{gpu.num_gpus} x {gpu.name}{where}"


def _groups(count: int) -> str:
    return f"{count} group{'s' * (count > 1)}"


def methods(plan: PlanRecord) -> Table:
    """AMAD, size-weighted AMAD and largest diameter of every method's candidates."""
    names = list(plan.candidates)
    table = titled_table("AMAD / size-weighted / largest, by method", ("G", *names), right=("G", *names))
    for rows in zip(*plan.candidates.values(), strict=True):
        table.add_row(str(rows[0].num_groups), *map(_distances, rows))
    return table


def _distances(candidate: Candidate) -> str:
    return " / ".join(fixed(getattr(candidate, name)) for name in ("amad", "size_weighted_amad", "largest_diameter"))


def verdict(plan: PlanRecord) -> str:
    """The choice in words, and what this run takes in all."""
    run, total = plan.run, sum(map(len, plan.partitions.values()))
    suites = f"{len(plan.suites)} suites" if plan.suite_costs else " and ".join(plan.suites)
    passes = f" in {len(plan.passes)} passes" if len(plan.passes) > 1 else ""
    flops = " ".join(f"{value:.3g} FLOP by {whose} count," for value, whose in _flops(plan) if value is not None)
    return (
        f"chosen: {plan.choice.num_groups} groups, {plan.why}\n"
        f"this run ({suites}, {total} SAEs or fewer where they share{passes}): {flops or 'FLOP unknown,'} "
        f"{format_duration(run.seconds)}; memory {format_bytes(run.memory_bytes)}; disk {format_bytes(run.disk_bytes)}"
    )


def _flops(plan: PlanRecord) -> tuple[tuple[float | None, str], ...]:
    return (plan.run.own_flops, "our"), (plan.run.published_flops, "the published")


def _framed(frame: Frame, title: str, without: Collection[str]) -> Table:
    """A frame as a terminal shows it, without some columns; heads and titles are wrapped into narrow columns."""
    columns = [column for column in frame.columns if column.name not in without]
    titles = ["\n".join(wrap(f"{column.head} {column.title}", 10)) for column in columns]
    table = titled_table(title, ("", *titles), right=titles)
    for place, cells in enumerate(replace(frame, columns=columns).cells):
        marked = place in frame.marked
        table.add_row("->" if marked else "", *(cell.text for cell in cells), style="bold" if marked else None)
    return table


def titled_table(title: str, columns: Sequence[str], right: Sequence[str] = ()) -> Table:
    """An empty table with these columns."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column != "files")
    return table
