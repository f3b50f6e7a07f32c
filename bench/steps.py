"""One training step of each library, on a batch that lies in memory: what `step.py` times.

A step is everything that the library's own loop does to a batch once it has it: forward, losses,
dead latents, backward, clipping and projection where there is one, optimizer, schedule, unit norms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from unit import Shape

from groupsae.config import TopKConfig, TrainConfig
from groupsae.saes.scales import Scales
from groupsae.training.group_trainer import GroupTrainer

Step = Callable[[Tensor], object]
"""Trains on a batch x_ND."""

FOREVER = 10**6
"""Steps that a schedule is told of; none is near its end while it is timed."""


def groupsae(shape: Shape, **settings: str) -> Step:
    """Ours; `settings` are further keys of [train], such as `precision`."""
    group = group_in_training(shape, **settings)
    layers_N = torch.zeros(shape.batch, dtype=torch.long)
    return lambda x_ND: group.step(x_ND, layers_N, 0.0)


def group_in_training(
    shape: Shape,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    **settings: str,
) -> GroupTrainer:
    """A group of one layer, as the trainer would make it."""
    scales = Scales(("layers.0",), torch.ones(1), torch.zeros(1, shape.d_model)).to(device)
    train = TrainConfig(num_tokens=10**9, batch_tokens=shape.batch, **settings)
    return GroupTrainer(scales.hookpoints, scales, shape.d_model, TopKConfig(d_sae=shape.d_sae, k=shape.k), train, 0)


def sparsify_adam(shape: Shape) -> Step:
    """sparsify's `Trainer` with `optimizer = "adam"` and its linear schedule."""
    from transformers import get_linear_schedule_with_warmup

    sae = _sparse_coder(shape)
    optimizer = torch.optim.Adam(sae.parameters(), lr=2e-4)
    return _sparsify(sae, optimizer, get_linear_schedule_with_warmup(optimizer, 1000, FOREVER).step)


def sparsify_default(shape: Shape) -> Step:
    """sparsify's `Trainer` with its default, schedule-free sign descent."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    sae = _sparse_coder(shape)
    optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=5e-3), momentum=0.95)
    optimizer.train()
    return _sparsify(sae, optimizer, lambda: None)


def _sparse_coder(shape: Shape) -> torch.nn.Module:
    from sparsify import SparseCoder, SparseCoderConfig

    return SparseCoder(shape.d_model, SparseCoderConfig(num_latents=shape.d_sae, k=shape.k), dtype=torch.float32)


def _sparsify(sae: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Callable[[], None]) -> Step:
    """What `Trainer.fit` does per hookpoint and batch by default: no AuxK, no clipping, every token kept."""
    silent_S = torch.zeros(sae.num_latents, dtype=torch.long)
    fired_S = torch.zeros(sae.num_latents, dtype=torch.bool)

    def step(x_ND: Tensor) -> None:
        kept_ND = x_ND.detach().clone()[torch.ones(len(x_ND), dtype=torch.bool)]
        sae.set_decoder_norm_to_unit_norm()
        variance = (kept_ND - kept_ND.mean(0)).pow(2).sum()
        out = sae(x=kept_ND, y=kept_ND, dead_mask=None, total_variance=variance)
        fired_S[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        (out.fvu + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        schedule()
        silent_S.add_(len(kept_ND))
        silent_S[fired_S] = 0
        fired_S.zero_()

    return step


def dictionary_learning(shape: Shape) -> Step:
    """dictionary_learning's `TopKTrainer.update`, AuxK on; its first call also finds a geometric median."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=FOREVER,
        activation_dim=shape.d_model,
        dict_size=shape.d_sae,
        k=shape.k,
        layer=0,
        lm_name="none",
        device="cpu",
        seed=0,
    )
    count = iter(range(FOREVER))
    return lambda x_ND: trainer.update(next(count), x_ND)


def saelens(shape: Shape) -> Step:
    """SAELens's `SAETrainer.step` on its `TopKTrainingSAE`, AuxK on, nothing logged."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.d_model, d_sae=shape.d_sae, k=shape.k))
    config = SAETrainerConfig(
        total_training_samples=FOREVER * shape.batch, train_batch_size_samples=shape.batch, lr_end=3e-5
    )
    return SAETrainer(config, sae, data_provider=iter(())).step


def contestants() -> dict[str, Callable[[Shape], Step]]:
    """Every library's step by name; ours in each precision that it knows."""
    found = {"groupsae": groupsae}
    if "precision" in TrainConfig.model_fields:
        found["groupsae, bf16 product"] = lambda shape: groupsae(shape, precision="bf16")
    return found | {
        "sparsify, Adam": sparsify_adam,
        "sparsify, default": sparsify_default,
        "dictionary_learning": dictionary_learning,
        "SAELens": saelens,
    }
