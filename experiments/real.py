"""Which plan gives the best SAEs for all layers of a real model, SmolLM2-135M, at a given cost?

    python experiments/real.py [--budget small|full] [--text FILES] [--model PATH] [--out runs/real]

Downloads the model, harvests its activations once, tunes learning rates by one rule, trains every row of the table at
every budget and seed, evaluates them, and writes OUT/results.json, OUT/table.md and OUT/real.svg. Whatever is done
already is left as it is, so that it can be stopped at any time and called again.

A budget is what one SAE per layer costs on so many tokens, by our own count, language model included.
On two idle cores `small` should take about half an hour and `full` some hours (reckoned from steps, not measured).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from real_bed import RealBed, fetch_model
from real_rates import best_rates, tune
from real_rows import ROWS, Spending, Trainer
from real_table import write_table
from real_text import mix

from groupsae.evaluation.losses import evaluate_losses
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.progress import bar, say
from groupsae.saes.suite import Suite
from groupsae.storage import write_json


@dataclass(frozen=True)
class Budget:
    """How much is done: tokens per SAE of one SAE per layer, seeds of the smallest, rows of text for losses."""

    tokens: tuple[int, ...]
    seeds: int
    paid_too: bool
    tuning_tokens: int
    loss_tokens: int
    every_layers: int
    """Losses with one layer spliced at a time are measured at every so-manieth layer."""

    def trainings(self) -> list[tuple[int, int, bool]]:
        """(tokens, seed, paid) of every training of a row."""
        seeds = {self.tokens[0]: range(self.seeds)}
        readings = (False, True) if self.paid_too else (False,)
        return [(n, seed, paid) for n in self.tokens for paid in readings for seed in seeds.get(n, range(1))]


BUDGETS = {
    "tiny": Budget((2_048,), 1, False, 1_024, 512, 10),
    "small": Budget((10_000,), 1, False, 4_096, 1_920, 29),
    "full": Budget((20_000, 60_000, 180_000), 3, True, 20_000, 3_840, 4),
}
HELD_OUT_TOKENS = 16_384
CEILING = "five times the budget"


class Results:
    """What was measured, kept in one JSON file that is written after every training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.exists() else {"rates": {}, "rows": {}, "facts": {}}
        self.rates, self.rows, self.facts = known["rates"], known["rows"], known["facts"]

    def save(self) -> None:
        """Write the file anew, whole or not at all."""
        write_json(self.path, {"facts": self.facts, "rates": self.rates, "rows": self.rows})


def main() -> None:
    """Train and evaluate what is missing, then write the table."""
    options = _options()
    budget, out = BUDGETS[options.budget], options.out
    model = options.model or fetch_model(out)
    text_tokens = options.text_tokens or 5 * max(budget.tokens)
    text = mix(options.text, text_tokens + HELD_OUT_TOKENS, out / "text.jsonl")
    bed = RealBed.prepare(out, model, [str(text)], text_tokens, HELD_OUT_TOKENS)
    results = Results(out / "results.json")
    results.facts = _facts(bed, budget, options)
    tune(bed, budget.tuning_tokens, results.rates, results.save)
    for tokens, seed, paid in budget.trainings():
        names = [name for name in ROWS if not (CEILING in name and seed)]
        keys = {name: f"{name} | {tokens} | {seed} | {'paid' if paid else 'once'}" for name in names}
        for name, key in keys.items():
            if key not in results.rows:
                results.rows[key] = _trained(bed, results, _folder(out, key), name, tokens, seed, paid)
                results.save()
                say(json.dumps({"row": key} | results.rows[key]))
        for measure, done in ((_reconstructed, "fvu"), (_spliced, "delta_ce")):
            missing = [key for key in keys.values() if done not in results.rows[key]]
            suites = {key: Suite.load(_folder(out, key)) for key in missing}
            for key, found in (measure(bed, budget, suites) if suites else {}).items():
                results.rows[key] |= found
            results.save()
    write_table(results.facts, results.rows, results.rates, out)


def _folder(out: Path, key: str) -> Path:
    """Where the suite of a row lies."""
    return out / "suites" / re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS, default="full")
    parser.add_argument("--text", nargs="+", default=["demo"], help="files or folders of text; else Python's library")
    parser.add_argument("--text-tokens", type=int, help="tokens of text to harvest; else five times the largest budget")
    parser.add_argument("--model", help="a model to use instead of the one that is downloaded")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    return parser.parse_args()


def _facts(bed: RealBed, budget: Budget, options: argparse.Namespace) -> dict[str, Any]:
    train = bed.config.train
    return {
        "model": str(options.model or "SmolLM2-135M-Instruct, 4-bit weights of a GGUF file, dequantized"),
        "text": [Path(name).name for name in options.text],
        "groups": [list(group) for group in bed.groups.groups],
        "d_sae": bed.config.sae.width(bed.source.d_model),
        "k": bed.config.sae.k,
        "batch_tokens": train.batch_tokens,
        "harvested_tokens": bed.source.num_rows * bed.source.row_tokens,
        "budget": asdict(budget),
    }


def _trained(
    bed: RealBed, results: Results, folder: Path, name: str, tokens: int, seed: int, paid: bool
) -> dict[str, Any]:
    """Train one row and save its suite; what it cost."""
    layers = len(bed.layers.groups)
    flops = tokens * (layers * bed.step_flops + (0 if paid else bed.harvest_flops(1)))
    began = time.perf_counter()
    suite = ROWS[name](Trainer(bed, seed, best_rates(results.rates)), Spending(flops, paid))
    seconds = time.perf_counter() - began
    shutil.rmtree(folder, ignore_errors=True)
    suite.save(folder)
    flops *= 5 if CEILING in name else 1
    seen = next(iter(suite.saes.values())).lineage.tokens
    return {"tflop": flops / 1e12, "seconds": seconds, "saes": len(suite.saes), "tokens": seen}


def _reconstructed(bed: RealBed, budget: Budget, suites: dict[str, Suite]) -> dict[str, dict[str, Any]]:
    """FVU and dead latents of the rows of one budget and seed, all on the same held-out tokens."""
    with bar("reconstruction", bed.config.eval.num_tokens) as advance:
        found = evaluate_reconstructions(suites, bed.held_out, bed.config.eval.num_tokens, progress=advance).suites
    return {
        key: {
            "fvu": fmean(one.fvu for one in layers.values()),
            "fvu_worst": max(one.fvu for one in layers.values()),
            "dead_share": fmean(one.dead_share for one in layers.values()),
            "fvu_by_layer": {name: one.fvu for name, one in layers.items()},
        }
        for key, layers in found.items()
    }


def _spliced(bed: RealBed, budget: Budget, suites: dict[str, Suite]) -> dict[str, dict[str, Any]]:
    """What splicing costs: some layers one at a time, and all layers at once."""
    some = bed.layers.hookpoints[budget.every_layers // 2 :: budget.every_layers]
    with bar("losses", budget.loss_tokens) as advance:
        losses = evaluate_losses(
            suites, bed.model_reader, budget.loss_tokens, alone=some, both_scopes=False, progress=advance
        )
    return {
        key: {
            "delta_ce": fmean(one.delta_ce for one in losses.suites[key].values()),
            "kl": fmean(one.kl for one in losses.suites[key].values()),
            "delta_ce_all": losses.all_layers[key].delta_ce,
            "delta_ce_all_interval": losses.all_layers[key].intervals.get("delta_ce"),
        }
        for key in suites
    }


if __name__ == "__main__":
    main()
