"""Activations held in memory, so that many trainings read the language model once; and what SAEs are judged by."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from groupsae.activations.harvest import Harvester
from groupsae.activations.source import row_order
from groupsae.config import RunConfig
from groupsae.evaluation.losses import evaluate_losses
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.partition import Partition
from groupsae.progress import bar
from groupsae.recipes.context import RunContext
from groupsae.recipes.run import run_stage
from groupsae.records import RunDirectory
from groupsae.records.types.partition import PartitionRecord
from groupsae.saes.suite import Suite


class HeldActivations:
    """Some rows of a source, in float16, as a source of their own; special positions are left out as there."""

    def __init__(self, source: Harvester, num_rows: int) -> None:
        self.hookpoints, self.d_model, self.device = source.hookpoints, source.d_model, source.device
        self.row_tokens, self.batch_rows, self.num_masked = source.row_tokens, source.batch_rows, 0
        rows = row_order(source.num_rows, 0, 0)[:num_rows]
        self.num_rows, parts = len(rows), []
        with bar("harvest", len(rows) * self.row_tokens) as advance:
            for some in rows.split(self.batch_rows):
                x_LBTD, special_BT = source.read_positions(some.tolist())
                parts.append((x_LBTD.half().transpose(0, 1), ~special_BT))
                advance(special_BT.numel())
        self._x_BLTD, self._keep_BT = (torch.cat(part) for part in zip(*parts, strict=True))
        self._layers = list(range(len(self.hookpoints)))

    def read(self, rows: Sequence[int]) -> Tensor:
        """The activations x_LND of these rows' tokens."""
        x_BLTD, keep_BT = self._x_BLTD[list(rows)], self._keep_BT[list(rows)]
        return torch.stack([x_BLTD[:, layer].float()[keep_BT] for layer in self._layers])

    def narrowed(self, hookpoints: tuple[str, ...]) -> HeldActivations:
        """The same at some of the hookpoints."""
        narrow = copy.copy(self)
        narrow.hookpoints = hookpoints
        narrow._layers = [self._layers[self.hookpoints.index(name)] for name in hookpoints]
        return narrow


class Bed:
    """A run up to its groups, its activations in memory, and its held-out text."""

    def __init__(self, config: RunConfig, folder: Path, num_tokens: int) -> None:
        run = RunDirectory.at(folder, config)
        for stage in ("tokens", "distances", "group"):
            run_stage(run, stage)
        self.config, self.ctx = config, RunContext(run)
        self.source = HeldActivations(self.ctx.source, -(-num_tokens // self.ctx.source.row_tokens))
        self.held_out = self.ctx.source.held_out()
        self.groups = PartitionRecord.read(run).choice.partition
        self.layers = Partition.singletons(self.groups.hookpoints)

    def judge(self, suite: Suite, *, fvu_tokens: int = 8192, ce_tokens: int = 3072) -> dict[str, float]:
        """FVU and delta CE, means over layers, and the worst layer's FVU, on held-out text."""
        fvu = [
            one.fvu for one in evaluate_reconstructions({"it": suite}, self.held_out, fvu_tokens).suites["it"].values()
        ]
        losses = evaluate_losses({"it": suite}, self.held_out, ce_tokens).suites["it"].values()
        return {"fvu": fmean(fvu), "worst": max(fvu), "delta_ce": fmean(one.delta_ce for one in losses)}


def means(rows: Sequence[Mapping[str, float]], key: str) -> tuple[float, float]:
    """The mean over seeds and half the spread between the lowest and the highest."""
    values = [row[key] for row in rows]
    return fmean(values), (max(values) - min(values)) / 2
