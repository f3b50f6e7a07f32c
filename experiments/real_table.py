"""The table and the figure of a real model, from the results of real.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from groupsae.storage import write_text

COLUMNS = {
    "SAEs": ("saes", "{:.0f}"),
    "tokens per SAE": ("tokens", "{:,.0f}"),
    "FVU, mean": ("fvu", "{:.4f}"),
    "FVU, worst layer": ("fvu_worst", "{:.4f}"),
    "delta CE, one layer at a time": ("delta_ce", "{:.4f}"),
    "KL, one layer at a time": ("kl", "{:.4f}"),
    "delta CE, all layers at once": ("delta_ce_all", "{:.3f}"),
    "dead latents": ("dead_share", "{:.1%}"),
    "TFLOP": ("tflop", "{:.1f}"),
    "seconds of training": ("seconds", "{:.0f}"),
}


def write_table(facts: Mapping[str, Any], rows: Mapping[str, Any], rates: Mapping[str, Any], out: Path) -> None:
    """Write OUT/table.md, a table per budget and reading, and OUT/real.svg."""
    parts = [_conditions(facts, rates)]
    for tokens, paid in sorted({(key.split(" | ")[1], key.split(" | ")[3]) for key in rows}, key=lambda k: int(k[0])):
        chosen = {key: row for key, row in rows.items() if key.split(" | ")[1::2] == [tokens, paid]}
        parts.append(_table(chosen, int(tokens), paid == "paid"))
    write_text(out / "table.md", "\n\n".join(parts) + "\n")
    draw(rows, out / "real.svg")


def _conditions(facts: Mapping[str, Any], rates: Mapping[str, Any]) -> str:
    tried = "; ".join(
        f"{kind}: "
        + ", ".join(f"{rate} ({fvu:.4f})" for rate, fvu in sorted(grid.items(), key=lambda one: float(one[0])))
        for kind, grid in rates.items()
    )
    return (
        f"Model: {facts['model']}. Text: {', '.join(facts['text'])}, {facts['harvested_tokens']:,} tokens harvested. "
        f"{len(facts['groups'])} groups. {facts['d_sae']} latents, k = {facts['k']}, batches of "
        f"{facts['batch_tokens']} tokens. Learning rates tried, with the FVU of each: {tried}."
    )


def _table(rows: Mapping[str, Any], tokens: int, paid: bool) -> str:
    """One table: means over seeds, in Markdown."""
    reading = "activations taken as harvested already" if paid else "harvest and distances charged"
    names = list(dict.fromkeys(key.split(" | ")[0] for key in rows))
    lines = [
        f"Budget: one SAE per layer on {tokens:,} tokens; {reading}.",
        "",
        "| row | " + " | ".join(COLUMNS) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for name in names:
        found = [row for key, row in rows.items() if key.split(" | ")[0] == name]
        cells = [form.format(fmean(row[key] for row in found)) for key, form in COLUMNS.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: Mapping[str, Any], path: Path) -> None:
    """FVU of every layer, a line per row of the smallest budget's first seed."""
    from matplotlib import pyplot

    least = min(int(key.split(" | ")[1]) for key in rows)
    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
    for key, row in rows.items():
        name, tokens, seed, reading = key.split(" | ")
        if (int(tokens), seed, reading) == (least, "0", "once"):
            axes.plot(
                [one.removeprefix("layers.") for one in row["fvu_by_layer"]], row["fvu_by_layer"].values(), label=name
            )
    axes.set(xlabel="layer", ylabel="FVU on held-out text", ylim=(0, None))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)
