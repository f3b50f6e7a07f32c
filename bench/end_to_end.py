"""SAEs for every layer of one local model, by each library, on the same text: wall time and held-out FVU.

    python bench/end_to_end.py

Each library trains TopK SAEs of the same sizes for every block but the last of the built-in model, on
the same number of tokens per SAE, in a process of its own. Seconds run from the model in memory to the
SAEs on disk: reading activations, measuring scales (and distances, for groups), training, saving.
Quality is measured afterwards by our evaluator, for all of them on the same held-out tokens in raw units.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import results
import torch
from contenders import CONTENDERS
from task import Task, prepare, read_source

from groupsae.evaluation.reconstruction import Reconstruction, evaluate_reconstructions
from groupsae.saes.suite import Suite

COLUMNS = (
    "contender",
    "SAEs",
    "seconds",
    "times the first",
    "CPU seconds",
    "tokens/s",
    "peak MiB",
    "rate",
    "mean FVU",
    "dead",
)


def main() -> None:
    """Run every contender, then judge all of them together."""
    options = _arguments()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    task = Task(
        num_tokens=options.tokens,
        d_sae=options.d_sae,
        k=options.k,
        batch_tokens=options.batch_tokens,
        buffer_tokens=8 * options.batch_tokens,
        scale_tokens=options.tokens // 8,
        distance_tokens=options.tokens // 8,
        eval_tokens=options.eval_tokens,
        batch_rows=16,
        threads=options.threads,
        seed=0,
    )
    results.set_conditions(task.threads)
    facts = results.conditions()
    results.print_conditions(facts)
    prepare(task, options.folder, options.model, options.text)
    found = {name: run(name, options.folder) for name in options.only or CONTENDERS}
    judge(task, options.folder, {name: row for name, row in found.items() if "seconds" in row})
    print_table(task, found)
    print_layers({name: row["fvu"] for name, row in found.items() if "fvu" in row})
    results.write(options.folder / "end_to_end.json", facts | {"task": vars(task)}, [*found.values()])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000, help="per SAE")
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--eval-tokens", type=int, default=32_768)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--text", default="demo")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/end-to-end"))
    return parser.parse_args()


def run(name: str, folder: Path) -> dict[str, Any]:
    """What a contender wrote about itself, and its peak memory; or why there is nothing."""
    command = [sys.executable, str(Path(__file__).with_name("contenders.py")), name, str(folder)]
    log = folder / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        return {"name": name, "failed": log.read_text().strip().splitlines()[-1]}
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"name": name, **json.loads((folder / name / "facts.json").read_text()), "peak_bytes": peak}


def judge(task: Task, folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """Add each layer's FVU and the share of dead latents, all contenders on the same held-out tokens."""
    suites = {name: Suite.load(folder / name / "suite", "groups") for name in found}
    held_out = read_source(task, folder).held_out()
    judged = evaluate_reconstructions(suites, held_out, task.eval_tokens, seed=task.seed)
    for name, layers in judged.suites.items():
        found[name]["fvu"] = {hookpoint: result.fvu for hookpoint, result in layers.items()}
        found[name]["dead_share"] = _mean(layers, "dead_share")


def _mean(layers: dict[str, Reconstruction], metric: str) -> float:
    return fmean(getattr(result, metric) for result in layers.values())


def print_table(task: Task, found: dict[str, dict[str, Any]]) -> None:
    """A line per contender."""
    print(f"{task.num_tokens:,} tokens per SAE, S = {task.d_sae}, K = {task.k}, batches of {task.batch_tokens:,}\n")
    results.print_header(COLUMNS)
    first = next((row["seconds"] for row in found.values() if "seconds" in row), None)
    for name, row in found.items():
        if "failed" in row:
            results.print_row((name, f"left out: {row['failed']}", *["-"] * (len(COLUMNS) - 2)))
            continue
        seconds = row["seconds"]
        time = (
            f"{seconds:.1f}",
            f"{seconds / first:.2f}",
            f"{row['cpu_seconds']:.1f}",
            f"{task.num_tokens / seconds:,.0f}",
        )
        quality = (f"{fmean(row['fvu'].values()):.4f}", f"{row['dead_share']:.1%}")
        rate = f"{row['rate']:g}" if row["rate"] else "its own"
        results.print_row((name, row["saes"], *time, f"{row['peak_bytes'] / 2**20:.0f}", rate, *quality))


def print_layers(fvu: dict[str, dict[str, float]]) -> None:
    """Each layer's FVU, a column per contender."""
    print("\nHeld-out FVU by layer:\n")
    results.print_header(("layer", *fvu))
    for hookpoint in next(iter(fvu.values()), {}):
        results.print_row((hookpoint, *(f"{layers[hookpoint]:.4f}" for layers in fvu.values())))


if __name__ == "__main__":
    main()
