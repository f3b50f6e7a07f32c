"""What does a layer gain from maps of its own inside a group, when every SAE sees the same number of tokens?

    python experiments/per_layer.py [--seeds 0 1 2] [--tokens 120000]

Trains the groups of the built-in model with nothing, with each of `group.per_layer`, and with both; and one SAE per
layer. Prints a table: FVU and delta CE, means over layers with half the spread over seeds; FLOPs per token that every
SAE sees, the language model's share included; and the share of the variance that latents explain, 1 - FVU.
Writes all of it to runs/experiments/per_layer.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from budgets import ALL_FOLDED, NOTHING, Spender, flops_per_token
from held import Bed, means

from groupsae.config import PerLayer, load_config
from groupsae.training.fit import measure_scales

OWN = [NOTHING, PerLayer(bias=True), PerLayer(rotation=True), ALL_FOLDED]
CASES = [("groups", own) for own in OWN] + [("layers", NOTHING)]


def main() -> None:
    """Train and judge every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--tokens", type=int, default=120_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bed, rows = Bed(load_config(options.config), options.out / "bed", 2 * options.tokens), []
    for seed in options.seeds:
        scales = measure_scales(bed.source, bed.config.train.scale_tokens, center=bed.config.train.center, seed=seed)
        for of, own in CASES:
            partition = getattr(bed, of)
            suite = Spender(bed, scales, seed).train_on(options.tokens, partition, own=own)
            mflop = flops_per_token(bed, partition, 1, own) / 1e6
            facts = {"of": of, "own": " + ".join(own.names), "seed": seed, "mflop": mflop}
            rows.append(facts | bed.judge(suite))
            print(json.dumps(rows[-1]), flush=True)
            (options.out / "per_layer.json").write_text(json.dumps(rows, indent=1) + "\n")
    print_table(rows)


def print_table(rows: list[dict]) -> None:
    """A row per case, means over seeds with half their spread."""
    print("\n| SAEs of | per_layer | FVU | worst layer | delta CE | MFLOP per token | by latents |")
    print("|---" * 7 + "|")
    for of, own in dict.fromkeys((row["of"], row["own"]) for row in rows):
        some = [row for row in rows if (row["of"], row["own"]) == (of, own)]
        found = {key: means(some, key) for key in ("fvu", "worst", "delta_ce")}
        numbers = " | ".join(f"{mean:.4f} ± {spread:.4f}" for mean, spread in found.values())
        print(f"| {of} | {own} | {numbers} | {some[0]['mflop']:.2f} | {1 - found['fvu'][0]:.1%} |")


if __name__ == "__main__":
    main()
