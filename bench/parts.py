"""What each part of our own training step costs, in encoder products: the profiler's seconds, by operation.

An operation belongs to the named span it runs in (clip, projection, Adam, ...), and outside of spans
to the part that its name, or that of the operation it runs in, and the shape of its input tell.
"""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import results
import torch
from steps import group_in_training
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from unit import Shape, encoder_product, milliseconds

from groupsae.training import group_trainer as group_module
from groupsae.training.group_trainer import GroupTrainer

OPERATIONS = {
    "product": ("addmm", "mm", "matmul", "linear", "_addmm_activation"),
    "top-k": ("topk", "amax", "max", "gather", "remainder", "cat"),
    "transposition": ("sort", "searchsorted", "cumsum", "floor_divide", "index", "index_select"),
    "bias": ("add_", "mv", "addmv", "addmv_", "index_add_", "index_add"),
    "gradient of the latents": ("_embedding_bag_per_sample_weights_backward",),
}
"""Names of operations outside of spans, without their `aten::`."""
PARTS = (
    *("gather and scale", "product", "top-k", "decode", "gradient of the latents", "transposition"),
    *(
        "weight gradients",
        "bias",
        "losses and the rest",
        "clip",
        "projection",
        "Adam",
        "unit norm",
        "dead",
        "watch",
        "meter",
    ),
)


def measure_parts(shape: Shape, repeats: int) -> dict[str, float]:
    """Products per part, medians of `repeats` steps, and `step`, the median without a profiler."""
    torch.manual_seed(0)
    x_ND, layers_N = torch.randn(shape.batch, shape.d_model), torch.zeros(shape.batch, dtype=torch.long)
    group = group_in_training(shape)
    product = encoder_product(shape, x_ND)
    costs, steps = defaultdict(list), []
    for _ in range(2):
        group.step(x_ND, layers_N, 0.0)
    for _ in range(repeats):
        unit = milliseconds(product)
        steps.append(milliseconds(lambda: group.step(x_ND, layers_N, 0.0)) / unit)
        with spans(group), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
            group.step(x_ND, layers_N, 0.0)
        found = dict.fromkeys(PARTS, 0.0)
        for event in recorded.events():
            found[part_of(event, shape)] += event.self_cpu_time_total / 1e3
        for part, spent in found.items():
            costs[part].append(spent / unit)
    return {part: statistics.median(costs[part]) for part in PARTS} | {"step": statistics.median(steps)}


def print_parts(rows: Sequence[dict[str, Any]]) -> None:
    """A table with a line per part and a column per shape."""
    results.print_header(("part", *(" x ".join(str(row[key]) for key in Shape._fields) for row in rows)))
    for part in (*PARTS, "step"):
        results.print_row((part, *(f"{row['parts'][part]:.3f}" for row in rows)))


@contextlib.contextmanager
def spans(group: GroupTrainer) -> Iterator[None]:
    """Names the parts of `GroupTrainer.step` that are calls of their own, for the profiler to see."""
    calls = (
        ("gather and scale", type(group.scales), "normalize"),
        ("clip", group_module, "clip"),
        ("projection", group.sae, "project_decoder_gradient"),
        ("Adam", group.optimizer, "step"),
        ("unit norm", group.sae, "normalize_decoder"),
        ("dead", group.dead, "update"),
        ("watch", group.faults, "check"),
        ("meter", group.meter, "add"),
    )
    with contextlib.ExitStack() as stack:
        for name, owner, attribute in calls:
            stack.enter_context(mock.patch.object(owner, attribute, _named(name, getattr(owner, attribute))))
        yield


def _named(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        with record_function(f"part: {name}"):
            return work(*arguments, **options)

    return call


def part_of(event: FunctionEvent, shape: Shape) -> str:
    """The part that an event of the profiler belongs to: its span, else the nearest operation that tells."""
    chain = [event]
    while chain[-1].cpu_parent is not None:
        chain.append(chain[-1].cpu_parent)
    names = [above.name.removeprefix("aten::") for above in chain]
    spans = (name.removeprefix("part: ") for name in names if name.startswith("part: "))
    told = (part for above, name in zip(chain, names, strict=True) if (part := _told_by(above, name, names, shape)))
    return next(spans, None) or next(told, "losses and the rest")


def _told_by(event: FunctionEvent, name: str, names: Sequence[str], shape: Shape) -> str | None:
    if name in ("_embedding_bag", "_embedding_bag_forward_only"):
        return "decode" if event.input_shapes[0][0] == shape.d_sae else "weight gradients"
    return next((part for part, known in OPERATIONS.items() if name in known), None)
