"""What every contender of `end_to_end.py` is given: model, rows, sizes; and the form its SAEs are judged in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from groupsae.activations.harvest import Harvester
from groupsae.activations.source import row_order
from groupsae.config import TopKConfig
from groupsae.model_structure import find_hookpoints
from groupsae.models import load_model
from groupsae.partition import Partition, group_name
from groupsae.saes.registry import build_sae
from groupsae.saes.scales import Scales
from groupsae.saes.suite import BoundSAE, Suite
from groupsae.text.tokens import TokenRows


@dataclass(frozen=True)
class Task:
    """SAEs for every block but the last, on `num_tokens` tokens each, in batches of `batch_tokens`."""

    num_tokens: int
    d_sae: int
    k: int
    batch_tokens: int
    buffer_tokens: int
    scale_tokens: int
    distance_tokens: int
    eval_tokens: int
    batch_rows: int
    threads: int
    seed: int

    @property
    def sae(self) -> TopKConfig:
        """Our config of an SAE of these sizes."""
        return TopKConfig(d_sae=self.d_sae, k=self.k)

    @property
    def steps(self) -> int:
        """Optimizer steps per SAE."""
        return self.num_tokens // self.batch_tokens

    def save(self, folder: Path) -> None:
        """Write it beside the model and the rows."""
        (folder / "task.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Task:
        """The task that `save` wrote."""
        return cls(**json.loads((folder / "task.json").read_text()))


def prepare(task: Task, folder: Path, model: str, text: str) -> None:
    """Write the model in float32 and the tokens: a local directory that every library reads."""
    language_model, tokenizer = load_model(model)
    language_model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    longest = getattr(language_model.config, "max_position_embeddings", 256)
    rows = TokenRows.from_files(text, tokenizer, context_length=min(256, longest))
    rows.save(folder / "rows.safetensors")
    task.save(folder)


def read_source(task: Task, folder: Path) -> Harvester:
    """The activations of the task, from what `prepare` wrote."""
    model, _ = load_model(str(folder / "model"))
    rows = TokenRows.load(folder / "rows.safetensors")
    return Harvester(model, rows, find_hookpoints(model, ("residual",)), batch_rows=task.batch_rows)


def ordered_ids(task: Task, rows: TokenRows) -> Tensor:
    """All training rows in the order in which ours are read, (R, T): shuffled, as sparsify asks of a dataset."""
    return rows[row_order(len(rows), task.seed, 0).tolist()]


def suite_of(task: Task, weights: Mapping[str, Mapping[str, Tensor]]) -> Suite:
    """A suite of one SAE per hookpoint from a library's weights, in our names and for raw activations."""
    partition = Partition.singletons(tuple(weights))
    d_model = next(iter(weights.values()))["b_dec"].shape[0]
    saes = {}
    for hookpoint, tensors in weights.items():
        sae = build_sae(d_model, task.sae)
        sae.load_state_dict({name: tensor.detach().float() for name, tensor in tensors.items()})
        saes[group_name((hookpoint,))] = sae.requires_grad_(False)
    scales = Scales(partition.hookpoints, torch.ones(len(weights)), torch.zeros(len(weights), d_model))
    return Suite(partition, saes, scales)


@torch.no_grad()
def require_same(bound: BoundSAE, theirs: Callable[[Tensor], Tensor], x_ND: Tensor) -> None:
    """Raises if a converted SAE does not reconstruct as the library's own does; near ties in top-k may differ."""
    ours_ND, theirs_ND = bound(x_ND), theirs(x_ND)
    off_N = (ours_ND - theirs_ND).norm(dim=1) > 1e-3 * theirs_ND.norm(dim=1)
    if off_N.float().mean() > 0.01:
        raise RuntimeError(f"{bound.hookpoint}: {int(off_N.sum())} of {len(off_N)} reconstructions differ.")
