"""What the evaluation of circuits is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from groupsae.config.section import Count, Names, Section, Share, Whole
from groupsae.errors import unknown

CIRCUIT_TASKS = (
    "indirect-object",
    "greater-than",
    "subject-verb",
    "closing-bracket",
    "closing-quote",
    "repeated-name",
)


def _rising(value: object) -> object:
    return tuple(sorted(set(value))) if isinstance(value, list | tuple) else value


class CircuitsConfig(Section):
    """Which tasks circuits are looked for in, and how."""

    tasks: Names = CIRCUIT_TASKS
    """Built-in tasks, and .json or .jsonl files of prompt pairs. Tasks that the tokenizer or the model cannot
    do are skipped, with the reason."""
    num_pairs: Annotated[Whole, Field(ge=2)] = 64
    """Pairs of prompts per task, at most: half to choose latents on, half to test them on."""
    min_pairs: Annotated[Whole, Field(ge=2)] = 16
    """A task of which fewer pairs can be used is skipped."""
    min_accuracy: Share = 0.7
    """A task on which the model prefers the right answer less often is skipped."""
    attribution: Literal["gradient", "integrated"] = "gradient"
    """A latent's effect from the gradient at the clean prompt, or from its mean on the way to the patched one."""
    integration_steps: Count = 10
    """Points on that way."""
    choose: Literal["per-layer", "overall"] = "per-layer"
    """Take the strongest latents of each layer, or the strongest of all layers by one threshold."""
    set_sizes: Annotated[tuple[Count, ...], BeforeValidator(_rising), Field(min_length=1)] = (1, 4, 16, 64, 256)
    """Latents per layer in a circuit (per layer on average, where they are chosen overall)."""
    ablation: Literal["mean", "patch"] = "mean"
    """What latents outside a circuit are set to: their mean over clean prompts, or their value on the patched one."""
    resamples: Count = 1000
    """Bootstrap resamples of the test prompts, for the intervals; pairs that share a prompt are drawn together."""

    @property
    def files(self) -> list[Path]:
        """The files among the tasks."""
        return [Path(task) for task in self.tasks if task not in CIRCUIT_TASKS]

    @field_validator("tasks")
    @classmethod
    def _known_or_files(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task not in CIRCUIT_TASKS and not task.endswith((".json", ".jsonl")):
                raise ValueError(f"{unknown('task', task, CIRCUIT_TASKS)} A .json or .jsonl file will do as well.")
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError("name at least one task, and each once")
        return tasks
