"""The figure of circuits: how much of a task a few latents carry, with the SAEs' errors and without."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from groupsae.analysis.run_records import BASELINE, RunRecords, suite_title
from groupsae.metrics import percent
from groupsae.records.types.circuits import CircuitsRecord, SplicedCircuits, TaskCircuits
from groupsae.report.figures import theme
from groupsae.report.figures.theme import GRAY, GROUP_COLORS, MUTED, RULE, Drawing

_VARIANTS = {"error_kept": "SAE errors kept", "error_removed": "SAE errors removed"}
_CURVES = {"faithfulness": "solid", "completeness": (0, (3, 2))}
_DOTTED = (0, (1, 2))
_LOW, _HIGH = -0.25, 1.35


def faithfulness_curves(records: RunRecords) -> Drawing | None:
    """Faithfulness and completeness by the size of the circuit, a row of panels per task. None without a scored one."""
    record = records.circuits
    tasks = {name: task for name, task in record.tasks.items() if task.suites} if record else {}
    if record is None or not tasks:
        return None
    suites = list(dict.fromkeys(suite for task in tasks.values() for suite in task.suites))
    others = [name for name in suites if name != BASELINE]
    colors = {BASELINE: MUTED} | {name: GROUP_COLORS[i % len(GROUP_COLORS)] for i, name in enumerate(others)}
    with theme.canvas(height=0.8 + 1.75 * len(tasks)) as figure:
        panels = figure.subplots(len(tasks), len(_VARIANTS), sharex=True, sharey=True, squeeze=False)
        for row, (name, task) in zip(panels, tasks.items(), strict=True):
            for axes, (variant, title) in zip(row, _VARIANTS.items(), strict=True):
                for suite, found in task.suites.items():
                    _draw_suite(axes, getattr(found, variant), colors[suite])
                _dress(axes, {one.size for found in task.suites.values() for one in found.sizes})
                theme.heading(axes, f"{theme.short(name)}: {title}")
        for axes in panels[-1]:
            axes.set_xlabel("latents per layer in the circuit")
        _legend(figure, {name: colors[name] for name in (BASELINE, *others)})
        svg = theme.to_svg(figure, "circuits", "Faithfulness and completeness of circuits by their size")
    return Drawing("circuits", "What a few latents carry", _caption(record, tasks), svg)


def _draw_suite(axes: Axes, found: SplicedCircuits, color: str) -> None:
    for curve, dashes in _CURVES.items():
        points = [(point.size, point.ratio) for point in getattr(found, curve).points if point.ratio is not None]
        if not points:
            continue
        sizes = [size for size, _ in points]
        low, value, high = ([getattr(ratio, key) for _, ratio in points] for key in ("low", "value", "high"))
        axes.fill_between(sizes, low, high, color=color, alpha=0.13, linewidth=0)
        axes.plot(sizes, value, color=color, linestyle=dashes, linewidth=1.4, marker="o", markersize=2.8)
    if found.ceiling is not None:
        axes.axhline(found.ceiling.value, color=color, linewidth=0.8, linestyle=_DOTTED)


def _dress(axes: Axes, sizes: set[int]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.set_ylim(_LOW, _HIGH)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.grid(axis="y")
    axes.axhline(0, color=RULE, linewidth=0.6)


def _legend(figure: Canvas, colors: Mapping[str, str]) -> None:
    lines = [(theme.short(suite_title(name)), color, 1.6, "solid") for name, color in colors.items()]
    lines += [(name, GRAY, 1.4, dashes) for name, dashes in _CURVES.items()]
    lines += [("all latents", GRAY, 0.8, _DOTTED)]
    handles = [Line2D([], [], color=c, linewidth=w, linestyle=d, label=label) for label, c, w, d in lines]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.8, borderpad=0)


def _caption(record: CircuitsRecord, tasks: Mapping[str, TaskCircuits]) -> str:
    done = [
        f"{name} ({percent(task.skill.accuracy) if task.skill else '-'} right, {task.num_test} test prompts)"
        for name, task in tasks.items()
    ]
    skipped = [f"{name}: {task.skipped}" for name, task in record.tasks.items() if task.skipped]
    caption = (
        "The model’s preference for the right answer, as a share of its full preference. Solid (faithfulness): all "
        "latents outside the circuit are set to their mean; 1 is all. Dashed (completeness): the latents inside it "
        "are; 0 is best. Bands hold 95 % of resampled prompts. With the SAEs’ errors kept, the errors can carry the "
        "task, so bad SAEs look good. With the errors removed, the dotted line shows what all latents together can "
        f"do. How the model itself does: {', '.join(done)}."
    )
    return f"{caption} Not scored: {'; '.join(skipped)}." if skipped else caption
