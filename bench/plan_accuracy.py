"""How well the plan predicts: trains the demo with every number of groups and prints both.

    python bench/plan_accuracy.py [--config configs/demo.toml] [--folder runs/bench-plan]

One pilot predicts seconds, peak memory and mean FVU of every number of groups; each is then trained
alone, in a process of its own, and measured. Takes some minutes; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from groupsae.records import RunDirectory
from groupsae.records.types.candidate import Candidate
from groupsae.records.types.plan import PlanRecord
from groupsae.records.types.reconstruction import ReconstructionRecord
from groupsae.records.types.training import TrainRecord

GROUPSAE = [sys.executable, "-m", "groupsae"]


def main() -> None:
    """Predict once, then train every number of groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-plan"))
    options = parser.parse_args()
    base = options.folder / "base"
    for stage, flags in (("tokens", []), ("distances", []), ("group", []), ("plan", ["--pilot"])):
        groupsae(stage, base if base.exists() else options.config, *flags, *([] if base.exists() else ["--out", base]))
    predicted = PlanRecord.read(RunDirectory.open(base)).own_candidates
    rows = [(each, measure(base, options.folder / f"groups-{each.num_groups}", each)) for each in predicted]
    print_table(rows)


def groupsae(stage: str, *arguments: object) -> int:
    """Run one stage in a process of its own; returns its peak resident memory in bytes."""
    command = [*GROUPSAE, stage, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(base: Path, folder: Path, candidate: Candidate) -> dict[str, float]:
    """What training and evaluating this number of groups alone gives."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    (folder / "plan.json").unlink()
    groupsae("group", folder, "--groups", candidate.num_groups, "--overwrite")
    memory = groupsae("train", folder, "--no-baseline")
    groupsae("eval", folder)
    run = RunDirectory.open(folder)
    layers = ReconstructionRecord.read(run).suites["groups"].values()
    return {
        "seconds": sum(TrainRecord.read(run).seconds.values()),
        "bytes": memory,
        "fvu": statistics.fmean(layer.fvu for layer in layers),
    }


def print_table(rows: list[tuple[Candidate, dict[str, float]]]) -> None:
    """Predicted, measured and the error of each, as a Markdown table."""
    print("| groups | seconds | measured | error | MiB | measured | error | mean FVU | measured | error |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for candidate, found in rows:
        cells = [str(candidate.num_groups)]
        for guess, truth, form in (
            (candidate.seconds, found["seconds"], ".1f"),
            (candidate.cost.host_bytes / 2**20, found["bytes"] / 2**20, ".0f"),
            (candidate.fvu.value, found["fvu"], ".4f"),
        ):
            cells += [format(guess, form), format(truth, form), f"{guess / truth - 1:+.1%}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
