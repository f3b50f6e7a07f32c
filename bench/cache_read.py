"""How fast an activation cache is read, against `dd` of the same files; and what int8 costs.

    python bench/cache_read.py [--folder DIR] [--gib 4]     reading speed
    python bench/cache_read.py --int8 [--tokens 300000]     FVU after training from float32 and from int8

Files leave the system's page cache before each pass, as far as it lets go of them; what lies below
(a virtual machine's host, a disk's own memory) is the same for both. Rows are read in random order,
a batch of 16 at a time, as training reads them. `dd` and the cache take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from groupsae.activations.cache import CachedActivations
from groupsae.activations.cache_writer import write_cache
from groupsae.activations.harvest import Harvester
from groupsae.activations.source import row_order
from groupsae.config import TopKConfig, TrainConfig
from groupsae.evaluation.reconstruction import evaluate_reconstruction
from groupsae.model_structure import residual_stream
from groupsae.models import load_model
from groupsae.partition import Partition
from groupsae.text.tokens import TokenRows
from groupsae.training.trainer import train

LAYERS, WIDTH, LENGTH, BATCH_ROWS = 29, 576, 256, 16


class Noise:
    """Random activations in the shape of a language model with 30 blocks of width 576; one special token per row."""

    def __init__(self, num_rows: int) -> None:
        self.hookpoints = tuple(f"layers.{layer}" for layer in range(LAYERS))
        self.d_model, self.num_rows, self.row_tokens, self.batch_rows = WIDTH, num_rows, LENGTH, BATCH_ROWS
        self.device, self.skip_special, self.num_masked = torch.device("cpu"), True, 0

    def read_positions(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same random row, again and again."""
        special_BT = torch.zeros(len(rows), LENGTH, dtype=torch.bool)
        special_BT[:, 0] = True
        row_LBTD = torch.randn(LAYERS, 1, LENGTH, WIDTH)
        return row_LBTD.expand(-1, len(rows), -1, -1).to(torch.bfloat16), special_BT


def drop(files: Sequence[Path]) -> None:
    """Ask the system to forget what it holds of these files in memory."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def mib_per_second(files: Sequence[Path], read: Callable[[], object]) -> float:
    """The speed at which `read` gets through all of these files, cold."""
    drop(files)
    began = time.perf_counter()
    read()
    return sum(path.stat().st_size for path in files) / 2**20 / (time.perf_counter() - began)


def run_dd(files: Sequence[Path]) -> None:
    """All files, one after the other."""
    for path in files:
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M"], check=True, stderr=subprocess.DEVNULL)


def read_all(folder: Path) -> None:
    """All training rows, in random order."""
    cache = CachedActivations(folder, batch_rows=BATCH_ROWS)
    for rows in row_order(cache.num_rows, 0, 0).split(BATCH_ROWS):
        cache.read(rows.tolist())


def speed(folder: Path, gib: float, repeats: int = 3) -> None:
    """Print the speed of both, and the ratio."""
    row_bytes = LAYERS * LENGTH * WIDTH * 2
    write_cache(Noise(max(BATCH_ROWS, round(gib * 2**30 / row_bytes))), folder, facts={"model": "noise"})
    files = sorted(folder.glob("*.safetensors"))
    pairs = [
        (mib_per_second(files, lambda: run_dd(files)), mib_per_second(files, lambda: read_all(folder)))
        for _ in range(repeats)
    ]
    for dd, cache in pairs:
        print(f"dd {dd:8,.0f} MiB/s    cache {cache:8,.0f} MiB/s    ratio {cache / dd:.0%}")
    dd, cache = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"median: dd {dd:,.0f} MiB/s, cache {cache:,.0f} MiB/s: {cache / dd:.0%} (at least 60% is wanted)")


def cost_of_int8(folder: Path, num_tokens: int) -> None:
    """Train the same suites of the built-in model from two caches, and print the FVU of both on float32 activations."""
    model, tokenizer = load_model("demo", device="cpu")
    rows = TokenRows.from_files("demo", tokenizer, max_tokens=num_tokens, max_held_out_tokens=20_000)
    source = Harvester(model, rows, residual_stream(model)[:-1])
    partition = Partition.singletons(source.hookpoints)
    budget = TrainConfig(num_tokens=num_tokens, batch_tokens=512, scale_tokens=20_000, learning_rate=4e-3)
    found, x_LND = {}, source.read(range(16))
    variance_L = (x_LND - x_LND.mean(1, keepdim=True)).square().sum((1, 2))
    for dtype in ("float32", "bfloat16", "int8"):
        write_cache(source, folder / dtype, dtype=dtype, facts={"model": "demo"})
        wrong_LND = CachedActivations(folder / dtype).read(range(16)).float() - x_LND
        print(
            f"{dtype}: at most {(wrong_LND.square().sum((1, 2)) / variance_L).max():.1e} of a layer's variance is lost"
        )
        suite = train(CachedActivations(folder / dtype), partition, TopKConfig(expansion=8, k=16), budget)
        found[dtype] = evaluate_reconstruction(suite, source.held_out(), 20_000)
    print(f"FVU on held-out text, trained on {num_tokens:,} tokens from a cache in each dtype")
    for name in source.hookpoints:
        print(name, *(f"{dtype} {results[name].fvu:.4f}" for dtype, results in found.items()), sep="   ")
    means = {dtype: statistics.mean(one.fvu for one in results.values()) for dtype, results in found.items()}
    print(
        "mean", *(f"{dtype} {fvu:.4f} ({fvu / means['float32'] - 1:+.2%})" for dtype, fvu in means.items()), sep="   "
    )


def main() -> None:
    """Measure what was asked for, in a folder that is removed afterwards unless it was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the caches are written, and stay; on the disk to measure")
    parser.add_argument("--gib", type=float, default=4.0, help="size of the cache that is read")
    parser.add_argument("--int8", action="store_true", help="measure what int8 costs instead")
    parser.add_argument("--tokens", type=int, default=300_000, help="tokens to train on, with --int8")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        if options.int8:
            cost_of_int8(folder, options.tokens)
        else:
            speed(folder, options.gib)
    finally:
        if not options.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
