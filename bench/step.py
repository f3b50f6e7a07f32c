"""The whole training step of each library, in units of one float32 encoder product of its shape.

    python bench/step.py
    python bench/step.py --device cuda     our step alone, by each of its paths, beside its floor (see kernels.py)

The product `x @ W_enc.T` into memory that is there already is timed before and after each step, and
each step is divided by the mean of its two. All libraries see the same batch, and take turns, so that
whatever else the machine does meets all of them. A library that is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import kernels
import results
import torch
from parts import measure_parts, print_parts
from steps import Step, contestants
from torch import Tensor
from unit import Shape, encoder_product, milliseconds

from groupsae.models import device_name, pick_device

SHAPES = (
    Shape(128, 2048, 16, 512),
    Shape(512, 8192, 32, 4096),
    Shape(768, 12288, 32, 4096),
    Shape(768, 12288, 128, 4096),
)
COLUMNS = ("D", "S", "K", "batch", "step of", "ms", "products: median", "quartiles")


def main() -> None:
    """Print a table of the libraries, then one of the parts of our own step; of a device, one of our kernels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", type=pick_device, help="measure our paths there, and no other library")
    parser.add_argument("--shapes", type=Shape.parse, nargs="+", metavar="DxSxKxBATCH")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/step.json"))
    options = parser.parse_args()
    results.set_conditions(options.threads)
    facts = results.conditions()
    results.print_conditions(facts)
    if options.device:
        facts |= {"device": device_name(options.device), "float32 products": torch.get_float32_matmul_precision()}
        print(f"{facts['device']}, float32 products: {facts['float32 products']}\n")
        rows = on_device(options.device, options.shapes or kernels.SHAPES, options.repeats)
    else:
        rows = beside_others(options.shapes or SHAPES, options.repeats)
    results.write(options.json, facts, rows)


def on_device(device: torch.device, shapes: Sequence[Shape], repeats: int) -> list[dict[str, object]]:
    """The rows of the table of our kernels on a device."""
    results.print_header(kernels.COLUMNS)
    return [row for shape in shapes for row in kernels.measure_kernels(shape, device, repeats)]


def beside_others(shapes: Sequence[Shape], repeats: int) -> list[dict[str, object]]:
    """The rows of the table of the libraries, then those of the parts of our own step."""
    results.print_header(COLUMNS)
    rows = [row for shape in shapes for row in measure(shape, repeats)]
    print("\nWhat each part of our step costs, in the same unit:\n")
    parts = [{**shape._asdict(), "parts": measure_parts(shape, repeats)} for shape in shapes]
    print_parts(parts)
    return [*rows, *parts]


def measure(shape: Shape, repeats: int) -> list[dict[str, object]]:
    """The table's rows for one shape: steps and products in milliseconds, medians and quartiles of the ratios."""
    torch.manual_seed(0)
    x_ND = torch.randn(shape.batch, shape.d_model)
    steps = prepare(shape)
    rows = []
    for name, (steps_ms, products_ms) in take_turns(shape, x_ND, steps, repeats).items():
        units = [
            step / statistics.fmean(pair) for step, pair in zip(steps_ms, zip(*products_ms, strict=True), strict=True)
        ]
        low, middle, high = statistics.quantiles(units, n=4)
        row = {"step_ms": statistics.median(steps_ms), "units": middle, "quartiles": [low, high]}
        rows.append({**shape._asdict(), "name": name, "product_ms": statistics.median(products_ms[0]), **row})
        results.print_row((*shape, name, f"{row['step_ms']:.0f}", f"**{middle:.2f}**", f"{low:.2f} to {high:.2f}"))
    return rows


def prepare(shape: Shape) -> dict[str, Step]:
    """A step of each library that can be had; what cannot is said."""
    steps = {}
    for name, make in contestants().items():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some greet on import, which would stand in the table
                steps[name] = make(shape)
        except ImportError as error:
            results.print_row((*shape, f"{name}: left out, {error}", *["-"] * 3))
    return steps


def take_turns(
    shape: Shape, x_ND: Tensor, steps: Mapping[str, Step], repeats: int
) -> dict[str, tuple[list[float], tuple[list[float], list[float]]]]:
    """Milliseconds of each library's steps, and of the products before and after each."""
    product = encoder_product(shape, x_ND)
    for step in steps.values():
        for _ in range(2):
            step(x_ND)
    found = {name: ([], ([], [])) for name in steps}
    before = milliseconds(product)
    for _ in range(repeats):
        for name, step in steps.items():
            found[name][0].append(milliseconds(lambda step=step: step(x_ND)))
            after = milliseconds(product)
            found[name][1][0].append(before)
            found[name][1][1].append(after)
            before = after
    return found


if __name__ == "__main__":
    main()
