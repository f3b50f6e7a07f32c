"""Numbers as a reader wants them, and the report's sentences."""

from __future__ import annotations

from collections.abc import Sequence

from groupsae.report.data import BASELINE, GROUPS
from groupsae.report.summary import SuiteSummary

NARROW, WIDE = "\u202f", "\u00a0"
"""No-break spaces, before % and before units that are words."""
NONE = "–"


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with this many decimals and a true minus sign; a dash for None."""
    if value is None:
        return NONE
    if value and abs(value) < 0.5 * 10**-digits:
        text = f"{value:.1e}".replace("e-0", "e-") if abs(value) < 1e-4 else f"{float(f'{value:.1e}'):g}"
        return text.replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return NONE if value is None else f"{fixed(100 * value, digits)}{NARROW}%"


def share(value: float | None, digits: int = 0) -> str:
    """A change as a percentage, with its sign; none for what rounds to nothing."""
    if value is None:
        return NONE
    rounded = round(100 * value, digits) + 0.0
    return f"{'+' if rounded > 0 else ''}{fixed(rounded, digits) if rounded else '0'}{NARROW}%"


def size(value: float | None) -> str:
    """Bytes in the unit that suits them."""
    if value is None:
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 999.5 or unit == "GiB":
            break
        value /= 1024
    return f"{value:,.{1 if value < 99.95 and unit != 'B' else 0}f}{WIDE}{unit}"


def count(value: float | None) -> str:
    """A count: written out below a million, then in millions or billions."""
    if value is None:
        return NONE
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g}{WIDE}{unit}"
    return f"{value:,.0f}"


def flops(pflop: float | None) -> str:
    """A number of floating-point operations, given in PFLOP."""
    if pflop is None:
        return NONE
    for size, unit in ((1e6, "ZFLOP"), (1e3, "EFLOP"), (1.0, "PFLOP"), (1e-3, "TFLOP")):
        if pflop >= size:
            return f"{pflop / size:.3g}{WIDE}{unit}"
    return f"{pflop * 1e6:.3g}{WIDE}GFLOP"


def duration(seconds: float | None) -> str:
    """A time in the two largest units that say something."""
    if seconds is None:
        return NONE
    if 0 < seconds < 0.05:
        return f"< 0.1{WIDE}s"
    if seconds < 59.95:
        return f"{seconds:.{0 if seconds >= 10 else 1}f}{WIDE}s"
    if seconds < 3599.5:
        large, small, units = *divmod(round(seconds), 60), ("min", "s")
    else:
        large, small, units = *divmod(round(seconds / 60), 60), ("h", "min")
    return f"{large}{WIDE}{units[0]}" + (f"{WIDE}{small}{WIDE}{units[1]}" if small else "")


def headline(summaries: Sequence[SuiteSummary], num_layers: int) -> str:
    """The run in one sentence, as far as it has come."""
    suites = {summary.name: summary for summary in summaries}
    groups, baseline = suites.get(GROUPS), suites.get(BASELINE)
    if groups is None:
        if not num_layers:
            return "No layer has been compared yet."
        return f"Distances between {plural(num_layers, 'layer')} are measured; the layers are not grouped yet."
    sentence = f"{plural(groups.num_saes, 'SAE')} {verb(groups.num_saes)} {plural(groups.num_layers, 'layer')}"
    if baseline and baseline.mflop_per_token and groups.mflop_per_token:
        sentence += f" at {percent(groups.mflop_per_token / baseline.mflop_per_token)} of the baseline’s cost"
    qualities = [
        _against("mean FVU", groups.mean_fvu, baseline and baseline.mean_fvu, ""),
        _against("mean ΔCE", groups.mean_delta_ce, baseline and baseline.mean_delta_ce, f"{WIDE}nats"),
    ]
    found = ", ".join(quality for quality in qualities if quality)
    if found:
        return f"{sentence}; {found}."
    return f"{sentence}. {'They are not trained yet' if groups.seconds is None else 'They are not evaluated yet'}."


def _against(what: str, value: float | None, other: float | None, unit: str) -> str:
    if value is None:
        return ""
    against = "" if other is None else f" against {fixed(other)}"
    return f"{what} {fixed(value)}{against}{unit}"


def plural(number: int, noun: str) -> str:
    """A number and its noun: `1 layer`, `7 layers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def verb(number: int) -> str:
    """`serves` or `serve`."""
    return "serves" if number == 1 else "serve"


def key_figures(summaries: Sequence[SuiteSummary], num_tokens: int | None) -> list[tuple[str, str, str]]:
    """The strip below the title: value, what it is, and what to compare it with."""
    suites = {summary.name: summary for summary in summaries}
    groups, baseline = suites.get(GROUPS), suites.get(BASELINE)
    if groups is None:
        return []
    figures = [(str(groups.num_saes), "SAEs", f"for {plural(groups.num_layers, 'layer')}")]
    if groups.mflop_per_token is not None:
        if baseline and baseline.mflop_per_token:
            share = groups.mflop_per_token / baseline.mflop_per_token
            figures.append((percent(share), "of the cost", "of one SAE per layer, in FLOPs"))
        else:
            figures.append((fixed(groups.mflop_per_token, 1), "MFLOP per token", "language model and SAEs"))
    compared = [
        ("mean FVU", groups.mean_fvu, baseline and baseline.mean_fvu, 3),
        ("mean ΔCE, nats", groups.mean_delta_ce, baseline and baseline.mean_delta_ce, 3),
        ("CE score", groups.mean_ce_score, baseline and baseline.mean_ce_score, 3),
    ]
    for what, value, other, digits in compared:
        if value is not None:
            beside = f"baseline {fixed(other, digits)}" if other is not None else "mean over layers"
            figures.append((fixed(value, digits), what, beside))
    if groups.seconds is not None:
        beside = f"baseline {duration(baseline.seconds)}" if baseline and baseline.seconds else "trained alone"
        figures.append((duration(groups.seconds), "to train", beside))
    if num_tokens is not None:
        figures.append((count(num_tokens), "tokens", "seen by each SAE"))
    return figures
