"""Does every architecture train per layer, per group and from a group's SAE, to its L0 and with few dead latents?

    python experiments/architectures.py [--tokens 200000] [--transfer 60000] [--architectures topk gated]

Trains, on the built-in model with one seed, for each architecture one SAE per layer; the groups; and one SAE per layer
from its group's. All settings are the config's, the architecture's own their defaults. Prints a table: FVU, mean over
layers; L0 on held-out text, mean over layers, and of the layer farthest from k; the share of dead latents of the SAE
that has most. Writes all of it to runs/experiments/architectures.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from budgets import Spender
from held import Bed

from groupsae.config import as_architecture, load_config
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.saes.registry import ARCHITECTURES
from groupsae.saes.suite import Suite
from groupsae.training.fit import measure_scales
from groupsae.training.warm_start import WarmStart


def main() -> None:
    """Train and judge every architecture in all three ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--transfer", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bed, rows = Bed(load_config(options.config), options.out / "bed", 2 * options.tokens), []
    scales = measure_scales(
        bed.source, bed.config.train.scale_tokens, center=bed.config.train.center, seed=options.seed
    )
    for architecture in options.architectures:
        do = Spender(bed, scales, options.seed, as_architecture(bed.config.sae, architecture))
        suites = {
            "per layer": do.train_on(options.tokens, bed.layers),
            "groups": do.train_on(options.tokens, bed.groups),
        }
        start = WarmStart(suites["groups"], "group")
        suites["per layer, from its group's"] = do.train_on(options.transfer, bed.layers, start=start)
        for name, facts in judge(bed, suites).items():
            rows.append({"architecture": architecture, "trained": name} | facts)
            print(json.dumps(rows[-1]), flush=True)
        (options.out / "architectures.json").write_text(json.dumps(rows, indent=1) + "\n")
    print_table(rows)


def judge(bed: Bed, suites: dict[str, Suite]) -> dict[str, dict[str, float]]:
    """FVU and L0 of suites on held-out text, and the largest share of dead latents."""
    found = evaluate_reconstructions(suites, bed.held_out, bed.config.eval.num_tokens).suites
    k = bed.config.sae.k
    return {
        name: {
            "fvu": fmean(one.fvu for one in layers.values()),
            "l0": fmean(one.l0 for one in layers.values()),
            "farthest_l0": max((one.l0 for one in layers.values()), key=lambda l0: abs(l0 - k)),
            "dead": max(one.dead_share for one in layers.values()),
        }
        for name, layers in found.items()
    }


def print_table(rows: list[dict]) -> None:
    """A row per architecture and way of training."""
    print("\n| architecture | trained | FVU | L0 | farthest L0 | dead |\n" + "|---" * 6 + "|")
    for row in rows:
        numbers = f"{row['fvu']:.4f} | {row['l0']:.2f} | {row['farthest_l0']:.2f} | {row['dead']:.1%}"
        print(f"| {row['architecture']} | {row['trained']} | {numbers} |")


if __name__ == "__main__":
    main()
