"""The figure of circuits: how much of a task a few latents carry, with the SAEs' errors and without."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from groupsae.report.data import BASELINE, Record
from groupsae.report.figures import theme
from groupsae.report.figures.cost import SUITE_NAMES
from groupsae.report.figures.theme import GRAY, GROUP_COLORS, MUTED, RULE, Drawing

_VARIANTS = {"error_kept": "SAE errors kept", "error_removed": "SAE errors removed"}
_CURVES = {"faithfulness": "solid", "completeness": (0, (3, 2))}
_LOW, _HIGH = -0.25, 1.35


def faithfulness_curves(record: Record | None) -> Drawing | None:
    """Faithfulness and completeness by the size of the circuit, a row of panels per task: `eval/circuits.json`.

    None where the record is missing or no task was scored.
    """
    tasks = {name: task for name, task in (record or {}).get("tasks", {}).items() if task["suites"]}
    if not tasks:
        return None
    suites = list(dict.fromkeys(suite for task in tasks.values() for suite in task["suites"]))
    colors = _colors(suites)
    with theme.canvas(height=0.8 + 1.75 * len(tasks)) as figure:
        panels = figure.subplots(len(tasks), len(_VARIANTS), sharex=True, sharey=True, squeeze=False)
        for row, (name, task) in zip(panels, tasks.items(), strict=True):
            for axes, (variant, title) in zip(row, _VARIANTS.items(), strict=True):
                for suite, found in task["suites"].items():
                    _suite(axes, found[variant], colors[suite])
                _dress(axes, [size["size"] for found in task["suites"].values() for size in found["sizes"]])
                theme.heading(axes, f"{theme.short(name)}: {title}")
        for axes in panels[-1]:
            axes.set_xlabel("latents per layer in the circuit")
        _legend(figure, colors)
        svg = theme.to_svg(figure, "circuits", "Faithfulness and completeness of circuits by their size")
    return Drawing("circuits", "What a few latents carry", _caption(record, tasks), svg)


def _colors(suites: list[str]) -> dict[str, str]:
    others = [name for name in suites if name != BASELINE]
    return {BASELINE: MUTED} | {name: GROUP_COLORS[i % len(GROUP_COLORS)] for i, name in enumerate(others)}


def _suite(axes: Axes, found: Record, color: str) -> None:
    for curve, dashes in _CURVES.items():
        points = [(point["size"], point["ratio"]) for point in found[curve]["points"] if point["ratio"]]
        if not points:
            continue
        sizes = [size for size, _ in points]
        low, value, high = ([ratio[key] for _, ratio in points] for key in ("low", "value", "high"))
        axes.fill_between(sizes, low, high, color=color, alpha=0.13, linewidth=0)
        axes.plot(sizes, value, color=color, linestyle=dashes, linewidth=1.4, marker="o", markersize=2.8)
    if found["ceiling"]:
        axes.axhline(found["ceiling"]["value"], color=color, linewidth=0.8, linestyle=(0, (1, 2)))


def _dress(axes: Axes, sizes: list[int]) -> None:
    ticks = sorted(set(sizes))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.set_ylim(_LOW, _HIGH)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.grid(axis="y")
    axes.axhline(0, color=RULE, linewidth=0.6)


def _legend(figure: Canvas, colors: dict[str, str]) -> None:
    handles = [
        Line2D([], [], color=color, linewidth=1.6, label=SUITE_NAMES.get(name, theme.short(name)))
        for name, color in colors.items()
    ]
    handles += [
        Line2D([], [], color=GRAY, linewidth=1.4, linestyle=dashes, label=name) for name, dashes in _CURVES.items()
    ]
    handles.append(Line2D([], [], color=GRAY, linewidth=0.8, linestyle=(0, (1, 2)), label="all latents"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.8, borderpad=0)


def _caption(record: Record, tasks: dict[str, Record]) -> str:
    caption = (
        "Of the model’s preference for the right answer, the share that is left when all latents outside the circuit "
        "(solid: faithfulness, 1 is all) or inside it (dashed: completeness, 0 is best) are set to their mean. Bands "
        "hold 95 % of resampled prompts. With the SAEs’ errors kept, the errors can carry the task, so that bad SAEs "
        "look good; with the errors removed, the dotted line shows what all latents together can do. "
    )
    done = [
        f"{name} (right {task['skill']['accuracy']:.0%} of the time, {task['num_test']} test prompts)"
        for name, task in tasks.items()
    ]
    skipped = [f"{name}: {task['skipped']}" for name, task in record["tasks"].items() if task["skipped"]]
    caption += f"The model does {', '.join(done)}."
    return f"{caption} Not scored: {'; '.join(skipped)}." if skipped else caption
