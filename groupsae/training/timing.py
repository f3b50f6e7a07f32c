"""How long a few batches take on this machine: what a prediction in seconds is made of."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from groupsae.activations.source import ActivationSource, stream
from groupsae.config import SAEConfig, TrainConfig
from groupsae.planning.pricing import Rates
from groupsae.training.fit import measure_scales
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.kernel_choice import choose_kernel, now


def time_steps(
    source: ActivationSource, sae: SAEConfig, train: TrainConfig, *, seed: int = 0, repeats: int = 5
) -> Rates:
    """Seconds per token read and per step, medians after a warm-up; nothing is kept of what was trained."""
    rows = list(range(min(source.batch_rows, source.num_rows)))
    x_LND = source.read(rows)
    read = _median(lambda: source.read(rows), repeats, source.device) / max(x_LND.shape[1], 1)
    wanted = train.batch_tokens
    parts = [x_LND[-1]]
    for x_LND in stream(source, wanted, seed):
        parts.append(x_LND[-1])
        if sum(map(len, parts)) >= wanted:
            break
    x_ND = torch.cat(parts)[:wanted]
    scales = measure_scales(source, max(1, len(x_ND)), seed=seed)
    group = GroupTrainer((source.hookpoints[-1],), scales, source.d_model, sae, train, seed)
    choose_kernel([group.sae], len(x_ND), precision=train.precision)
    layers_N = torch.zeros(len(x_ND), dtype=torch.long, device=source.device)
    step = _median(lambda: group.step(x_ND, layers_N, 0.0), repeats, source.device)
    return Rates(read, step * wanted / len(x_ND), wanted)


def _median(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        began = now(device)
        work()
        seconds.append(now(device) - began)
    return statistics.median(seconds)
