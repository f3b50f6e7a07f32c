"""Circuits of several suites on several tasks, each suite on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from groupsae.activations.harvest import Harvester
from groupsae.config.circuits import CircuitsConfig
from groupsae.estimate import Estimate
from groupsae.evaluation.circuits.attribution import attribute
from groupsae.evaluation.circuits.curves import Curve, Ratios
from groupsae.evaluation.circuits.faithfulness import Ablation, mean_latents
from groupsae.evaluation.circuits.nodes import NodeSet, choose_nodes, complement, count_nodes, weakest_effect
from groupsae.evaluation.circuits.prompts import prompt_clusters
from groupsae.evaluation.circuits.spliced import KeptPositions, SplicedModel
from groupsae.evaluation.circuits.tasks import Skill, Task, differences, prepare, task_pairs
from groupsae.model_structure import require_causal
from groupsae.saes.suite import Suite


@dataclass(frozen=True)
class CircuitSize:
    """A circuit: `size` latents per hookpoint were asked for, `nodes` latents in all have an effect.

    weakest_effect is the smallest |effect| among them, in logits: the threshold, where they are chosen overall.
    """

    size: int
    nodes: int
    weakest_effect: float | None


@dataclass(frozen=True)
class Spliced:
    """Circuits with the SAEs' errors kept, or removed.

    empty    mean m with every latent ablated
    ceiling  the ratio of the full set: 1 with errors kept; with errors removed, what all latents can do alone
    """

    empty: float
    ceiling: Estimate | None
    faithfulness: Curve
    completeness: Curve


@dataclass(frozen=True)
class SuiteCircuits:
    """What a suite's circuits do on one task."""

    sizes: tuple[CircuitSize, ...]
    error_kept: Spliced
    error_removed: Spliced


@dataclass(frozen=True)
class TaskCircuits:
    """One task: its prompts, the model's own skill, and what each suite's circuits do.

    `suites` is empty where the task was skipped, and `skipped` then says why.
    """

    given: int
    dropped: dict[str, int]
    num_choose: int
    num_test: int
    skill: Skill | None
    skipped: str | None
    full: float | None
    suites: dict[str, SuiteCircuits]


@dataclass(frozen=True)
class CircuitsResult:
    """Circuits by task and suite."""

    tasks: dict[str, TaskCircuits]


def evaluate_circuits(
    suites: Mapping[str, Suite],
    source: Harvester,
    tokenizer: Any,
    config: CircuitsConfig | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> CircuitsResult:
    """Faithfulness and completeness of every suite's circuits on every task of the config.

    Latents are chosen on some prompts and tested on others, the same for every suite. SAEs stand at all of
    a suite's hookpoints at once, at the positions that the source does not leave out. `progress` is called with 1 after
    each task. Raises TextError or ConfigError for the files of `config.tasks`,
    and ModelError for a model whose predictions depend on later tokens, before anything is computed.
    """
    config = config or CircuitsConfig()
    pairs = task_pairs(config, seed)
    require_causal(source.model, source.rows[[0]].to(source.device), "A circuit that predicts the next token")
    found: dict[str, TaskCircuits] = {}
    for name, given in pairs.items():
        task = prepare(given, source.model, tokenizer, config, seed)
        found[name] = _evaluate_task(suites, source, task, config, seed)
        if progress:
            progress(1)
    return CircuitsResult(found)


def _evaluate_task(
    suites: Mapping[str, Suite], source: Harvester, task: Task, config: CircuitsConfig, seed: int
) -> TaskCircuits:
    def result(full: float | None, circuits: dict[str, SuiteCircuits]) -> TaskCircuits:
        counts = (task.given, task.dropped, task.num_choose, task.num_test)
        return TaskCircuits(*counts, task.skill, task.skipped, full, circuits)

    keep = KeptPositions(source)
    if task.skipped:
        return result(None, {})
    full_P = differences(source.model, task.test)
    circuits = {
        name: _evaluate_suite(SplicedModel(source.model, suite, keep), task, full_P, config, seed)
        for name, suite in suites.items()
    }
    return result(full_P.mean().item(), circuits)


def _evaluate_suite(
    spliced: SplicedModel, task: Task, full_P: Tensor, config: CircuitsConfig, seed: int
) -> SuiteCircuits:
    effects = attribute(spliced, task.choose, config.attribution, config.integration_steps)
    widest = max(len(effect_S) for effect_S in effects.values())
    sets = {min(size, widest): choose_nodes(effects, size, config.choose) for size in config.set_sizes}
    means = mean_latents(spliced, task.choose) if config.ablation == "mean" else None
    ablation = Ablation(spliced, task.test, means)
    clusters_P = prompt_clusters(task.test)
    sizes = tuple(CircuitSize(s, count_nodes(nodes), weakest_effect(effects, nodes)) for s, nodes in sets.items())

    def ratios_to(empty_P: Tensor) -> Ratios:
        return Ratios(full_P, empty_P, config.resamples, seed, clusters_P)

    kept, removed = (_evaluate_sets(ablation, sets, ratios_to, keep_error=keep_error) for keep_error in (True, False))
    return SuiteCircuits(sizes, kept, removed)


def _evaluate_sets(
    ablation: Ablation, sets: Mapping[int, NodeSet], ratios_to: Callable[[Tensor], Ratios], *, keep_error: bool
) -> Spliced:
    nothing = {name: torch.zeros_like(taken_S) for name, taken_S in next(iter(sets.values())).items()}
    empty_P = ablation(nothing, keep_error=keep_error)
    ratios = ratios_to(empty_P)
    inside = [ablation(nodes, keep_error=keep_error) for nodes in sets.values()]
    outside = [ablation(complement(nodes), keep_error=keep_error) for nodes in sets.values()]
    return Spliced(
        empty=empty_P.mean().item(),
        ceiling=ratios.estimate(ablation(complement(nothing), keep_error=keep_error)),
        faithfulness=ratios.curve(list(sets), inside),
        completeness=ratios.curve(list(sets), outside),
    )
