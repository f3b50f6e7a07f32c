"""A task made ready for one model: its prompts, and whether the model can do it at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groupsae.config.circuits import CircuitsConfig
from groupsae.errors import ConfigError
from groupsae.evaluation.circuits.generators import GENERATORS, generate_pairs
from groupsae.evaluation.circuits.pairs import PromptPair, read_pairs
from groupsae.evaluation.circuits.prompts import Prompts, by_length, divide, tokenize_pairs
from groupsae.evaluation.splice import edited_logits

CANDIDATES_PER_PAIR = 4
"""Pairs that are generated for one that is wanted: tokenizers refuse many."""
PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class Skill:
    """How well the untouched model does a task, on all pairs that are used.

    accuracy                share of clean prompts after which it prefers the clean answer to the patched one
    logit_difference        mean m over clean prompts: logit of the clean answer less that of the patched one
    patch_logit_difference  the same after the patched prompts; below zero where the patch turns the answer
    """

    accuracy: float
    logit_difference: float
    patch_logit_difference: float


@dataclass(frozen=True)
class Task:
    """A task's prompts by length, some to choose latents on and others to test them on.

    `given` pairs were generated or read; `dropped` counts those left out, by reason. `skipped` says why the
    task is not scored, None if it is; `skill` is None where no pair is left to try the model on.
    """

    choose: tuple[Prompts, ...]
    test: tuple[Prompts, ...]
    given: int
    dropped: dict[str, int]
    skill: Skill | None
    skipped: str | None

    @property
    def num_choose(self) -> int:
        """Pairs to choose latents on."""
        return sum(map(len, self.choose))

    @property
    def num_test(self) -> int:
        """Pairs to test them on."""
        return sum(map(len, self.test))


def task_pairs(config: CircuitsConfig, seed: int) -> dict[str, list[PromptPair]]:
    """The pairs of every task of a config; a file's task bears the file's name without its ending.

    Raises TextError for a file that is missing or damaged, ConfigError for two tasks of one name.
    """
    found: dict[str, list[PromptPair]] = {}
    for task in config.tasks:
        name = task if task in GENERATORS else Path(task).stem
        if name in found:
            raise ConfigError(f"Two tasks of circuits.tasks are called {name!r}; rename the file {task}.")
        if task in GENERATORS:
            found[name] = generate_pairs(task, CANDIDATES_PER_PAIR * config.num_pairs, seed)
        else:
            found[name] = read_pairs(task)
    return found


def prepare(pairs: Sequence[PromptPair], model: nn.Module, tokenizer: Any, config: CircuitsConfig, seed: int) -> Task:
    """The task of these pairs, for a model and its tokenizer; skipped if they cannot do it."""
    allowed, refused = tokenize_pairs(pairs, tokenizer, _longest(model))
    choose, test, left_out = divide(allowed, config.num_pairs, seed)
    dropped = dict(refused + left_out)
    device = next(model.parameters()).device
    sides = tuple(by_length(choose, device)), tuple(by_length(test, device))
    kept = len(choose) + len(test)
    skill = measure_skill(model, [*sides[0], *sides[1]]) if kept else None
    return Task(*sides, len(pairs), dropped, skill, _why_skipped(kept, len(pairs), dropped, skill, config))


def _longest(model: nn.Module) -> int | None:
    """Tokens that the model reads at most, as far as it says."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


@torch.no_grad()
def differences(model: nn.Module, prompts: Sequence[Prompts], *, patched: bool = False) -> Tensor:
    """The untouched model's m after each clean (or patched) prompt, (P,), float64."""
    parts = [portion for one in prompts for portion in one.split(PROMPTS_AT_ONCE)]
    found = [p.logit_difference(edited_logits(model, p.patch_PT if patched else p.clean_PT, {})) for p in parts]
    return torch.cat(found).cpu()


def measure_skill(model: nn.Module, prompts: Sequence[Prompts]) -> Skill:
    """How well the untouched model does on these prompts."""
    clean_P, patch_P = differences(model, prompts), differences(model, prompts, patched=True)
    return Skill((clean_P > 0).double().mean().item(), clean_P.mean().item(), patch_P.mean().item())


def _why_skipped(
    kept: int, given: int, dropped: Mapping[str, int], skill: Skill | None, config: CircuitsConfig
) -> str | None:
    if skill is None or kept < config.min_pairs:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        return f"only {kept} of {given} pairs can be used, {config.min_pairs} are needed ({reasons})"
    if skill.accuracy < config.min_accuracy:
        return f"the model prefers the right answer to {skill.accuracy:.1%}, {config.min_accuracy:.1%} are needed"
    return None
