"""What does a layer gain from maps of its own inside a group, when every SAE sees the same number of tokens?

    python bench/per_layer.py [--seeds 0 1 2] [--tokens 120000]

Trains the groups of the built-in model with nothing, with each of `group.per_layer`, and with all that fold into the
weights; and one SAE per layer without and with an absorber. Prints a table: FVU and delta CE, means over layers with
half the spread over seeds; FLOPs per token that every SAE sees, the language model's share included; what share of
the variance an absorber carries, which has no latents, and what is left to be explained by latents: 1 - FVU - absorbed.
Writes all of it to runs/bench/per_layer.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from budgets import ALL_FOLDED, NOTHING, Spender, flops_per_token
from held import Bed, means

from groupsae.config import PerLayer, load_config
from groupsae.saes.suite import Suite
from groupsae.training.fit import measure_scales

OWN = [
    NOTHING,
    PerLayer(affine=True),
    PerLayer(bias=True),
    PerLayer(rotation=True),
    PerLayer(bias=True, rotation=True),
    ALL_FOLDED,
    PerLayer(absorber=4),
    PerLayer(affine=True, bias=True, rotation=True, absorber=4),
]
CASES = [("groups", own) for own in OWN] + [("layers", own) for own in (NOTHING, PerLayer(absorber=4))]


def main() -> None:
    """Train and judge every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--tokens", type=int, default=120_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bed, rows = Bed(load_config(options.config), options.out / "bed", 2 * options.tokens), []
    for seed in options.seeds:
        scales = measure_scales(bed.source, bed.config.train.scale_tokens, center=bed.config.train.center, seed=seed)
        for of, own in CASES:
            partition = getattr(bed, of)
            suite = Spender(bed, scales, seed).train_on(options.tokens, partition, own=own)
            mflop = flops_per_token(bed, partition, 1, own) / 1e6
            facts = {"of": of, "own": " + ".join(own.names), "seed": seed, "mflop": mflop, "absorbed": absorbed(suite)}
            rows.append(facts | bed.judge(suite))
            print(json.dumps(rows[-1]), flush=True)
            (options.out / "per_layer.json").write_text(json.dumps(rows, indent=1) + "\n")
    print_table(rows)


def absorbed(suite: Suite) -> float:
    """The share of the variance that absorbers carry, mean over layers; 0 without."""
    shares = {name: maps.absorbed_M.mean().item() for name, maps in suite.layer_maps.items()}
    return fmean(
        shares.get(name, 0.0)
        for name, group in zip(suite.partition.names, suite.partition.groups, strict=True)
        for _ in group
    )


def print_table(rows: list[dict]) -> None:
    """A row per case, means over seeds with half their spread."""
    print("\n| SAEs of | per_layer | FVU | worst layer | delta CE | MFLOP per token | absorbed | by latents |")
    print("|---" * 8 + "|")
    for of, own in dict.fromkeys((row["of"], row["own"]) for row in rows):
        some = [row for row in rows if (row["of"], row["own"]) == (of, own)]
        found = {key: means(some, key) for key in ("fvu", "worst", "delta_ce", "absorbed")}
        numbers = " | ".join(f"{mean:.4f} ± {spread:.4f}" for mean, spread in list(found.values())[:3])
        absorbed, latents = found["absorbed"][0], 1 - found["fvu"][0] - found["absorbed"][0]
        print(f"| {of} | {own} | {numbers} | {some[0]['mflop']:.2f} | {absorbed:.1%} | {latents:.1%} |")


if __name__ == "__main__":
    main()
