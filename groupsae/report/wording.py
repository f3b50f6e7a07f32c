"""The report's sentences."""

from __future__ import annotations

from collections.abc import Sequence

from groupsae.analysis.run_records import BASELINE, GROUPS
from groupsae.metrics import METRICS, count, fixed, flops, percent
from groupsae.records.types.summary import SuiteSummary
from groupsae.units import format_duration

NONE = "–"
duration = format_duration
"""The transfer report's name for it."""

__all__ = ["NONE", "count", "duration", "fixed", "flops", "headline", "key_figures", "plural"]


def plural(number: int, noun: str) -> str:
    """A number and its noun: `1 layer`, `7 layers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def headline(summaries: Sequence[SuiteSummary], num_layers: int) -> str:
    """The run in one sentence, as far as it has come."""
    suites = {summary.name: summary for summary in summaries}
    groups, baseline = suites.get(GROUPS), suites.get(BASELINE)
    if groups is None:
        if not num_layers:
            return "No layer has been compared yet."
        return f"Distances between {plural(num_layers, 'layer')} are measured; the layers are not grouped yet."
    serve = "serves" if groups.num_saes == 1 else "serve"
    sentence = f"{plural(groups.num_saes, 'SAE')} {serve} {plural(groups.num_layers, 'layer')}"
    if baseline and baseline.published_mflop and groups.published_mflop:
        sentence += f" at {percent(groups.published_mflop / baseline.published_mflop)} of the baseline’s FLOPs"
    qualities = [
        _against("mean FVU", groups.mean_fvu, baseline and baseline.mean_fvu, ""),
        _against("mean ΔCE", groups.mean_delta_ce, baseline and baseline.mean_delta_ce, "\u00a0nats"),
    ]
    found = ", ".join(quality for quality in qualities if quality)
    if found:
        at = " at equal tokens per SAE" if baseline and baseline.mean_fvu is not None else ""
        return f"{sentence}; {found}{at}."
    return f"{sentence}. {'They are not trained yet' if groups.seconds is None else 'They are not evaluated yet'}."


def _against(what: str, value: float | None, other: float | None, unit: str) -> str:
    if value is None:
        return ""
    against = "" if other is None else f" against {fixed(other)}"
    return f"{what} {fixed(value)}{against}{unit}"


def key_figures(summaries: Sequence[SuiteSummary]) -> list[tuple[str, str, str]]:
    """The strip below the title: value, what it is, and what to compare it with."""
    suites = {summary.name: summary for summary in summaries}
    groups, baseline = suites.get(GROUPS), suites.get(BASELINE)
    if groups is None:
        return []
    figures = [(str(groups.num_saes), "SAEs", f"for {plural(groups.num_layers, 'layer')}")]
    if groups.published_mflop is not None:
        if baseline and baseline.published_mflop:
            share = percent(groups.published_mflop / baseline.published_mflop)
            figures.append((share, "of the FLOPs", "of one SAE per layer, at equal tokens"))
        else:
            figures.append((fixed(groups.published_mflop, 1), "MFLOP per token", "language model and SAEs"))
    for name in ("mean_fvu", "mean_delta_ce", "mean_ce_score"):
        value, other = getattr(groups, name), baseline and getattr(baseline, name)
        if value is not None:
            beside = f"baseline {fixed(other)}" if other is not None else "mean over layers"
            figures.append((fixed(value), METRICS[name].title, beside))
    if groups.seconds is not None:
        beside = f"baseline {format_duration(baseline.seconds)}" if baseline and baseline.seconds else "trained alone"
        figures.append((format_duration(groups.seconds), "to train", beside))
    if groups.num_tokens is not None:
        figures.append((count(groups.num_tokens), "tokens", "seen by each SAE"))
    return figures
