"""The whole training step of one TopK SAE, in units of one float32 encoder product of its shape.

    python bench/step.py

A step is everything training does to a batch in memory: losses, backward, clipping, projection, Adam,
unit norms, dead latents, meters. The product `z @ W_enc.T` into memory that is there already is timed
before and after each step, and each step is divided by the mean of its two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from groupsae.activations.scale import Scales
from groupsae.config import TopKConfig, TrainConfig
from groupsae.training.group import GroupInTraining

SHAPES = ((128, 2048, 16, 512), (512, 8192, 32, 4096), (768, 12288, 32, 4096), (768, 12288, 128, 4096))


def main() -> None:
    """Print a line per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.repeats} steps per shape")
    print("| D | S | K | batch | product, ms | step, ms | step in products: median | quartiles |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        products, steps, ratios = measure(*shape, options.repeats)
        low, middle, high = statistics.quantiles(ratios, n=4)
        cells = [*shape, f"{statistics.median(products):.2f}", f"{statistics.median(steps):.2f}", f"{middle:.2f}"]
        print("| " + " | ".join(map(str, [*cells, f"{low:.2f} to {high:.2f}"])) + " |", flush=True)


def measure(width: int, d_sae: int, k: int, batch: int, repeats: int) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of the products and the steps, and their ratios, step by step."""
    scales = Scales(("layers.0",), torch.ones(1), torch.zeros(1, width))
    settings = TrainConfig(num_tokens=10**9, batch_tokens=batch)
    group = GroupInTraining(("layers.0",), scales, width, TopKConfig(d_sae=d_sae, k=k), settings, seed=0)
    x_ND, out_NS = torch.randn(batch, width), torch.empty(batch, d_sae)
    layers_N = torch.zeros(batch, dtype=torch.long)
    weights_DS = group.sae.W_enc.detach().T

    def product() -> None:
        torch.mm(x_ND, weights_DS, out=out_NS)

    for _ in range(3):
        group.step(x_ND, layers_N, 0.0)
        product()
    products, steps, ratios = [milliseconds(product)], [], []
    for _ in range(repeats):
        steps.append(milliseconds(lambda: group.step(x_ND, layers_N, 0.0)))
        products.append(milliseconds(product))
        ratios.append(steps[-1] / statistics.fmean(products[-2:]))
    return products, steps, ratios


def milliseconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
