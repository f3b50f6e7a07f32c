"""What the plan predicts of the run, beside what was measured, and what a plan does not say yet."""

from __future__ import annotations

from collections.abc import Callable

from groupsae.analysis.candidates import PlanView, view_plan
from groupsae.analysis.frames import NONE
from groupsae.analysis.run_records import BASELINE, GROUPS, RunRecords, suite_title
from groupsae.analysis.summary import summarize
from groupsae.estimate import Estimate
from groupsae.metrics import change, count, fixed, flops
from groupsae.records import RunDirectory
from groupsae.records.types.plan import CachePlan, GpuPlan, PlanRecord
from groupsae.report.evaluation_tables import estimate_text
from groupsae.report.facts import command
from groupsae.report.tables import Row
from groupsae.report.wording import plural
from groupsae.units import format_bytes, format_duration

PLAN_NOTE = (
    "Each row is a suite trained alone, at equal tokens per SAE. MFLOP are per SAE token, a token that each SAE sees: "
    "the published count has one dense step per SAE, ours is of what is computed. Savings are against one SAE per "
    "layer. “From” and “to” should hold the result in four of five cases. Click a heading to sort."
)


def forecast_rows(records: RunRecords, whole: RunRecords | None = None) -> list[Row]:
    """What was predicted of this run beside what was measured: training time, and quality of the trained suites.

    Time is that of the `whole` run, of which `records` may be one variant. Empty without predictions, and where
    something else was trained than what was planned. Without measurements a row has one value.
    """
    if records.plan is None or records.planned != records.partitions:
        return []
    every = whole or records
    rows = [row for row in (_time(every, every.plan), *_quality(records)) if row is not None]
    if all(row.values[1] == NONE for row in rows):
        return [Row(row.title, row.meaning, row.values[:1]) for row in rows]
    return rows


def _time(records: RunRecords, plan: PlanRecord) -> Row | None:
    predicted = plan.run.seconds
    if predicted is None or plan.gpu is not None:  # calculated for GPUs, not for the machine that trained
        return None
    taken = sum(records.train.seconds.values()) if records.train else None
    passes = f"{len(plan.passes)} passes" if len(plan.passes) > 1 else "one pass"
    meaning = f"all {_trained_saes(records)} SAEs of this run in {passes}"
    return _row("Training time", meaning, predicted, format_duration(predicted), taken, format_duration)


def _quality(records: RunRecords) -> list[Row]:
    plan, suites = view_plan(records), {suite.name: suite for suite in summarize(records)}
    if plan.quality == "fvu":
        found = [(name, plan.predicted(one)) for name, one in ((GROUPS, plan.choice), (BASELINE, plan.singletons))]
        return [
            _predicted(f"Mean FVU, {suite_title(name)}", "variance unexplained", value, suites[name].mean_fvu, fixed)
            for name, value in found
            if name in suites and value is not None
        ]
    value = plan.predicted(plan.choice)
    if value is None:
        return []
    groups, alone = (suites[name].mean_fvu if name in suites else None for name in (GROUPS, BASELINE))
    measured = None if groups is None or not alone else groups / alone - 1
    return [_predicted("Increase of mean FVU", "groups over one SAE per layer", value, measured, change)]


def _predicted(title: str, meaning: str, found: Estimate, measured: float | None, text: Callable[[float], str]) -> Row:
    return _row(title, meaning, found.value, estimate_text(found, text), measured, text)


def _row(
    title: str, meaning: str, predicted: float, shown: str, measured: float | None, text: Callable[[float], str]
) -> Row:
    if measured is None:
        return Row(title, meaning, (shown, NONE))
    difference = change(measured / predicted - 1) if predicted else NONE
    if text is change:
        difference = change(measured - predicted).replace("%", "pp")
    return Row(title, meaning, (shown, text(measured)), difference)


def _trained_saes(records: RunRecords) -> int:
    return len({name for partition in records.partitions.values() for name in partition.names})


def forecast_sentences(records: RunRecords) -> list[str]:
    """What the run takes as a whole, and how its FLOPs would be spent best."""
    plan, sentences = records.plan, []
    if plan is None:
        return []
    if plan.run.own_flops is not None and records.planned == records.partitions:
        published = plan.run.published_flops
        counted = f" ({flops(published / 1e15)} by the published count)" if published is not None else ""
        memory, disk = format_bytes(plan.run.memory_bytes), format_bytes(plan.run.disk_bytes)
        sentences.append(
            f"This run as a whole, {plural(_trained_saes(records), 'SAE')}, is planned at "
            f"{flops(plan.run.own_flops / 1e15)} by our count{counted}, {memory} of memory and {disk} of disk."
        )
    if plan.gpu is not None and records.planned == records.partitions:
        sentences.append(_on_gpus(plan.gpu))
    if plan.cache is not None:
        sentences.append(_cached(plan.cache))
    best = plan.compute_optimal
    if best is not None:
        groups = plural(best.num_groups, "group")
        sentences.append(
            f"If this run’s {flops(best.budget_flops / 1e15)} were spent on one suite, {groups} with "
            f"{count(best.num_tokens)} tokens each are predicted to be best: mean FVU {estimate_text(best.fvu, fixed)}."
        )
    return sentences


def _on_gpus(gpu: GpuPlan) -> str:
    nodes = f" on {gpu.num_nodes} nodes" if gpu.num_nodes > 1 else ""
    sentence = (
        f"Times are calculated for {gpu.num_gpus} × {gpu.name}{nodes}, not measured: this run takes "
        f"{format_duration(gpu.seconds)} and, per GPU, {format_bytes(gpu.memory_bytes)} of "
        f"{format_bytes(gpu.usable_bytes)} usable memory"
    )
    if gpu.fits:
        return f"{sentence}."
    return f"{sentence}, which does not fit" + (f"; {gpu.fewest_gpus} GPUs do." if gpu.fewest_gpus else ".")


def _cached(cache: CachePlan) -> str:
    size = f"A cache of the activations it reads would take {format_bytes(cache.size_bytes)} in {cache.dtype}"
    rate = f"a disk of {cache.disk_rate / 1e9:g} GB/s"
    if cache.trainings is None:
        return f"{size}, and with {rate} reading it would take longer than the language model."
    return f"{size}, and with {rate} save time from {plural(cache.trainings, 'training')} on."


def unpredicted(run: RunDirectory, records: RunRecords) -> tuple[str, list[str]] | None:
    """What this plan does not say, and the commands that find it out; None if it says everything."""
    plan = view_plan(records)
    if not plan.has_costs:
        return None
    texts, flags, before = _missing_quality(records, plan), [], []
    if records.distances is None:
        before = [command(run, stage) for stage in ("tokens", "distances", "group") if run.status(stage) != "done"]
    if any(one.seconds is None for one in plan.own):
        texts.append("Training time is not predicted: no batch was timed on this machine.")
        flags.append("--calibrate")
    if plan.quality != "fvu":
        flags.append("--pilot")
    if not texts:
        return None
    return " ".join(texts), [*before, " ".join([command(run, "plan"), "--overwrite", *flags])]


def _missing_quality(records: RunRecords, plan: PlanView) -> list[str]:
    if records.distances is None:
        return ["AMAD and quality are not known before the layers are compared, which needs the model’s weights."]
    if plan.quality is None:
        return ["No FVU is predicted."]
    if plan.quality == "fvu_increase":
        return ["A pilot predicts how large FVU will be on this model: it trains a few small SAEs first."]
    return []
