"""What a caller of training is told on the way, and can ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from groupsae.planning.cluster import ClusterPlan
from groupsae.saes.base import SparseAutoencoder
from groupsae.training.checkpoint import Progress
from groupsae.training.kernel_choice import KernelChoice


@dataclass(frozen=True)
class EvalHook:
    """Calls `on_eval` with the tokens so far and all SAEs by name, every `every_tokens` and at the end."""

    every_tokens: int
    on_eval: Callable[[int, dict[str, SparseAutoencoder]], None]


@dataclass(frozen=True)
class Hooks:
    """Callbacks of training; each is optional.

    progress  receives the number of tokens of each step; of all steps before, when training is resumed.
    log       receives a record every `log_every_tokens`.
    resumed   receives the progress of the checkpoint that training continues from, if there is one.
    planned   receives who trains what, and who reads how much, where there are several ranks.
    chosen    receives the kernel that steps use, where there was a choice.
    stop      is asked after each step. If it gives the number of a signal, the state is saved and Interrupted raised.
    eval      evaluates the SAEs during training.
    """

    progress: Callable[[int], None] | None = None
    log: Callable[[dict[str, Any]], None] | None = None
    resumed: Callable[[Progress], None] | None = None
    planned: Callable[[ClusterPlan], None] | None = None
    chosen: Callable[[KernelChoice], None] | None = None
    stop: Callable[[], int] | None = None
    eval: EvalHook | None = None
