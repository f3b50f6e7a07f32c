"""Does one nested TopK SAE do what four dedicated ones do, for a quarter or a third of their steps?

    python experiments/nested.py [--tokens 200000] [--layers layers.2 layers.5] [--expansion 8]

Trains on the built-in model, all in one pass over the same batches: for each layer a dedicated TopK SAE at k = 8, 16,
32 and 64; one nested SAE for all four on as many tokens, a quarter of the dedicated ones' steps together; and one on
4/3 as many, a third of them. Judges each at each k on held-out text: FVU, mean over layers, and its change against the
dedicated SAE. Prints a table with the seconds of steps, and writes all of it to runs/experiments/nested.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import torch
from held import Bed

from groupsae.config import TopKConfig, TrainConfig, load_config
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.partition import Partition
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.training.fit import measure_scales
from groupsae.training.trainer import Trained, TrainJob, train_together

SIZES = (8, 16, 32, 64)
NESTED = {"nested, a quarter of the steps": 1.0, "nested, a third of the steps": 4 / 3}
"""The nested SAEs, and their tokens in those of a dedicated one: it takes the steps of four."""


def main() -> None:
    """Train and judge all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--layers", nargs="+", default=["layers.2", "layers.5"])
    parser.add_argument("--expansion", type=float, default=8.0)
    parser.add_argument("--rates", nargs="+", type=float, default=[4e-3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bed = Bed(load_config(options.config), options.out / "bed", 2 * options.tokens)
    train = bed.config.train.model_copy(update={"num_tokens": options.tokens, "log_every_tokens": options.tokens})
    scales = measure_scales(bed.source, train.scale_tokens, center=train.center, seed=options.seed)
    rows = []
    for rate in options.rates:
        jobs = jobs_of(options.layers, options.expansion, train.model_copy(update={"learning_rate": rate}))
        trained = train_together(
            bed.source,
            jobs,
            scales,
            TopKConfig(),
            train,
            seed=options.seed,
            buffer_tokens=bed.config.activations.buffer_tokens,
        )
        rows += [{"rate": rate} | row for row in judge(bed, trained, scales, options.layers)]
        (options.out / "nested.json").write_text(json.dumps(rows, indent=1) + "\n")
    print_table(rows)


def jobs_of(layers: list[str], expansion: float, train: TrainConfig) -> dict[str, TrainJob]:
    """The SAEs to train, by `way/layer`."""
    common = {"expansion": expansion, "dead_after_tokens": 100_000}
    jobs = {}
    for layer in layers:
        for k in SIZES:
            jobs[f"dedicated {k}/{layer}"] = TrainJob((layer,), train, sae=TopKConfig(k=k, **common))
        for way, share in NESTED.items():
            longer = train.model_copy(update={"num_tokens": round(share * train.num_tokens)})
            jobs[f"{way}/{layer}"] = TrainJob((layer,), longer, sae=TopKConfig(k=SIZES[-1], nested_k=SIZES, **common))
    return jobs


def judge(bed: Bed, trained: Trained, scales: Scales, layers: list[str]) -> list[dict]:
    """A row per way and k: FVU and delta to the dedicated SAE, mean over layers; and the seconds of all steps."""
    ways = {"dedicated": [f"dedicated {k}" for k in SIZES]} | {way: [way] * len(SIZES) for way in NESTED}
    suites = {
        (way, k): _suite(trained, scales, layers, name).at_k(k)
        for way, names in ways.items()
        for k, name in zip(SIZES, names, strict=True)
    }
    labels = {f"{way} at {k}": (way, k) for way, k in suites}
    by_label = {label: suites[key] for label, key in labels.items()}
    found = evaluate_reconstructions(by_label, bed.held_out, bed.config.eval.num_tokens).suites
    seconds = {
        way: sum(trained.seconds[f"{name}/{layer}"] for name in set(names) for layer in layers)
        for way, names in ways.items()
    }
    return [
        {"way": way, "k": k, "seconds": seconds[way], **_means(found[label], found[f"dedicated at {k}"])}
        for label, (way, k) in labels.items()
    ]


def _means(layers: Mapping[str, object], dedicated: Mapping[str, object]) -> dict[str, float]:
    fvu, its = (fmean(one.fvu for one in found.values()) for found in (layers, dedicated))
    dead = fmean(one.dead_share for one in layers.values())
    return {"fvu": fvu, "change": fvu / its - 1, "l0": fmean(one.l0 for one in layers.values()), "dead": dead}


def _suite(trained: Trained, scales: Scales, layers: list[str], way: str) -> Suite:
    return Suite(Partition.singletons(layers), {layer: trained.saes[f"{way}/{layer}"] for layer in layers}, scales)


def print_table(rows: list[dict]) -> None:
    """A row per rate and way, a column per k."""
    print("\n| rate | trained | " + " | ".join(f"k = {k}" for k in SIZES) + " | seconds of steps |")
    print("|---" * (len(SIZES) + 3) + "|")
    for rate, way in dict.fromkeys((row["rate"], row["way"]) for row in rows):
        own = [row for row in rows if (row["rate"], row["way"]) == (rate, way)]
        cells = [f"{row['fvu']:.4f}" + ("" if way == "dedicated" else f" ({row['change']:+.1%})") for row in own]
        print(f"| {rate:g} | {way} | {' | '.join(cells)} | {own[0]['seconds']:.0f} |")


if __name__ == "__main__":
    main()
