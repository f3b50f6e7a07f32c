"""A run directory as the stages write it, with invented numbers that behave like real ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from groupsae.config import GroupConfig, ModelConfig, RunConfig, TrainConfig
from groupsae.partition import Partition, group_name
from groupsae.records import STAGES, RunDirectory

LM_MFLOP, SAE_MFLOP = 200.0, 100.0
OWN_LM_MFLOP, OWN_SAE_MFLOP = 180.0, 20.0
LM_SECONDS, SAE_SECONDS = 1200.0, 90.0
NUM_TOKENS = 2_000_000


def hookpoints(layers: int) -> list[str]:
    """`layers.0`, `layers.1`, ..."""
    return [f"layers.{index}" for index in range(layers)]


def make_run(
    path: Path, layers: int = 8, stages: tuple[str, ...] = STAGES[:-1], baseline: bool = True, model: str = "demo",
    names: list[str] | None = None, groups: list[list[str]] | None = None, logged: int = 200, pilot: bool = True,
) -> RunDirectory:  # fmt: skip
    """A run of which these stages are done."""
    config = RunConfig(
        name=path.name,
        model=ModelConfig(name=model),
        group=GroupConfig(max_amad=0.2),
        train=TrainConfig(num_tokens=NUM_TOKENS, baseline=baseline),
    )
    run = RunDirectory.at(path, config)
    run.adopt()
    names = names or hookpoints(layers)
    matrix = distance_matrix(len(names))
    plan = make_plan(names, matrix, baseline, groups, pilot)
    writers = {
        "tokens": lambda: {"tokens/index.json": tokens_record()},
        "distances": lambda: {"distances.json": distances_record(names, matrix)},
        "group": lambda: {"partition.json": partition_record(plan)},
        "plan": lambda: {"plan.json": plan},
        "train": lambda: {
            "train.json": train_record(plan),
            "suite.json": plan["partitions"],
            "metrics.jsonl": list(metric_lines(plan, logged)),
        },
        "eval": lambda: {
            "eval/reconstruction.json": reconstruction_record(plan),
            "eval/losses.json": losses_record(plan),
        },
    }
    seconds = {"tokens": 12.5, "distances": 95.0, "group": 0.2, "train": plan_seconds(plan), "eval": 388.0}
    for stage in stages:
        written = writers.get(stage, dict)()
        for name, content in written.items():
            if name.endswith(".jsonl"):
                for line in content:
                    run.append_json(name, line)
            else:
                run.write_json(name, content)
        run.finish(stage, seconds.get(stage, 1.0), list(written))
    if stages:
        manifest = run.manifest
        manifest["model"] = {"name": model, "blocks": len(names) + 1, "d_model": 256, "parameters": 19_123_456}
        run.write_json("manifest.json", manifest)
    return run


def plan_seconds(plan: dict[str, Any]) -> float:
    """How long training this plan took."""
    return sum(train_record(plan)["seconds"].values())


def distance_matrix(size: int) -> np.ndarray:
    """Neighbors are alike, early layers change fastest: 0.5 is never passed."""
    depth = np.array([math.sqrt(index) + 0.06 * index for index in range(size)])
    depth = depth / max(depth[-1], 1e-9)
    wobble = 0.01 * np.sin(np.add.outer(np.arange(size) * 1.7, np.arange(size) * 1.7))
    matrix = 0.46 * np.abs(np.subtract.outer(depth, depth)) ** 0.8 + np.abs(wobble)
    matrix = np.round(np.clip((matrix + matrix.T) / 2, 0, 0.5), 6)
    np.fill_diagonal(matrix, 0.0)
    return matrix


def distances_record(names: list[str], matrix: np.ndarray) -> dict[str, Any]:
    """distances.json"""
    errors = np.full_like(matrix, 0.0004)
    return {
        "metric": "angular", "hookpoints": names, "matrix": matrix.tolist(), "standard_error": errors.tolist(),
        "num_tokens": 1_000_000,
    }  # fmt: skip


METHODS = {"optimal": "average", "complete": "complete", "published": "weighted", "equal": None}
"""What stands in for each method here: a linkage, or equal chunks."""


def make_plan(
    names: list[str], matrix: np.ndarray, baseline: bool, groups: list[list[str]] | None = None, pilot: bool = True
) -> dict[str, Any]:
    """plan.json"""
    methods = {
        name: [_candidate(names, matrix, number, kind, pilot) for number in range(1, len(names) + 1)]
        for name, kind in METHODS.items()
    }
    candidates = methods["complete"]
    choice = next(candidate for candidate in candidates if candidate["amad"] < 0.2)
    partitions = {"baseline": [[name] for name in names]} if baseline else {}
    partitions |= {"groups": groups or choice["groups"]}
    saes = len({tuple(group) for division in partitions.values() for group in division})
    budget = NUM_TOKENS * (OWN_LM_MFLOP + OWN_SAE_MFLOP * saes) * 1e6
    best = {
        "budget_flops": budget, "num_groups": 2, "num_tokens": 3_456_789,
        "fvu": {"value": 0.111, "low": 0.1, "high": 0.123},
    }  # fmt: skip
    return {
        "method": "complete",
        "choice": {"num_groups": choice["num_groups"], "why": "smallest G with AMAD < 0.2"},
        "candidates": candidates,
        "methods": methods,
        "partitions": partitions,
        "run": prices(saes),
        "rates": {"read_per_token": 6e-4, "step": 0.01, "batch_tokens": 256},
        "pilot": pilot,
        "compute_optimal": best if pilot else None,
    }


def prices(saes: int) -> dict[str, Any]:
    """What so many SAEs cost"""
    paper = {"language_model": LM_MFLOP, "saes": SAE_MFLOP * saes, "total": LM_MFLOP + SAE_MFLOP * saes}
    own = {"language_model": OWN_LM_MFLOP, "saes": OWN_SAE_MFLOP * saes, "total": OWN_LM_MFLOP + OWN_SAE_MFLOP * saes}
    return {
        "mflop_per_token": paper,
        "own_mflop_per_token": own,
        "total_flops": {"paper": NUM_TOKENS * paper["total"] * 1e6, "own": NUM_TOKENS * own["total"] * 1e6},
        "seconds": LM_SECONDS + SAE_SECONDS * saes,
        "device_bytes": 0,
        "host_bytes": (500 + 10 * saes) * 2**20,
        "disk_bytes": 25 * saes * 2**20,
    }


def partition_record(plan: dict[str, Any]) -> dict[str, Any]:
    """partition.json: the same divisions, without a price"""
    known = ("num_groups", "groups", "amad", "size_weighted_amad", "largest_diameter")
    methods = {name: [{key: row[key] for key in known} for row in rows] for name, rows in plan["methods"].items()}
    choice = {"num_groups": len(plan["partitions"]["groups"]), "groups": plan["partitions"]["groups"]}
    return {"method": plan["method"], "choice": choice | plan["choice"], "methods": methods}


def _candidate(names: list[str], matrix: np.ndarray, number: int, kind: str | None, pilot: bool) -> dict[str, Any]:
    labels = [number * place // len(names) for place in range(len(names))]
    if kind is not None and len(names) > 1:
        labels = list(fcluster(linkage(squareform(matrix), kind), number, "maxclust"))
    partition = Partition.from_labels(names, labels)
    place = {name: index for index, name in enumerate(names)}
    sizes = [len(group) for group in partition.groups]
    blocks = [matrix[np.ix_([place[n] for n in group], [place[n] for n in group])] for group in partition.groups]
    widest = [float(block.max()) for block in blocks]
    excess = 2 * sum(float(block.mean(axis=0).sum()) for block in blocks) / len(names)
    alone = 0.105 + 0.005 * len(names)
    value = alone * (1 + excess)
    fvu = {"value": value, "low": value / 1.1, "high": value * 1.1}
    increase = {"value": excess, "low": excess / 1.5, "high": excess * 1.5}
    return {
        "num_groups": number,
        "groups": [list(group) for group in partition.groups],
        "amad": sum(widest) / len(widest),
        "size_weighted_amad": sum(w * s for w, s in zip(widest, sizes, strict=True)) / sum(sizes),
        "largest_diameter": max(widest),
        **prices(number),
        "fvu": fvu if pilot else None,
        "fvu_increase": increase,
    }


def _trained(plan: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    for division in plan["partitions"].values():
        partition = Partition(tuple(map(tuple, division)))
        groups.update(zip(partition.names, partition.groups, strict=True))
    return groups


def train_record(plan: dict[str, Any]) -> dict[str, Any]:
    """train.json: every SAE took 100 s"""
    trained = _trained(plan)
    return {
        "num_tokens": NUM_TOKENS, "d_model": 256, "d_sae": 4096, "k": 32,
        "seconds": {"language model": 1000.0, "SAE steps": 100.0 * len(trained), "other": 50.0},
        "groups": {name: {"seconds": 100.0, "hookpoints": list(group)} for name, group in trained.items()},
        "scales": {name: 0.05 for group in trained.values() for name in group},
    }  # fmt: skip


def metric_lines(plan: dict[str, Any], logged: int):
    """metrics.jsonl"""
    trained = _trained(plan)
    for index in range(1, logged + 1):
        tokens = NUM_TOKENS * index // logged
        groups = {}
        for place, (name, group) in enumerate(trained.items()):
            floor = 0.08 + 0.01 * (place % 9) + 0.015 * (len(group) - 1) ** 0.7
            fvu = floor + 0.9 * math.exp(-9 * index / logged) + 0.004 * math.sin(3.1 * index + place)
            groups[name] = {
                "loss": fvu + 0.01 / index, "fvu": fvu, "auxk": 0.001, "l0": 32.0, "dead_share": 0.02,
                "learning_rate": 2e-4,
            }  # fmt: skip
        yield {"step": index * 10, "tokens": tokens, "seconds": 5.0 * index, "groups": groups}


def _suites(plan: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The size of each layer's group, by suite."""
    return {
        suite: {name: len(group) for group in division for name in group}
        for suite, division in plan["partitions"].items()
    }


def reconstruction_record(plan: dict[str, Any]) -> dict[str, Any]:
    """eval/reconstruction.json: FVU is 0.10 + 0.01 layer, plus 0.02 for every further layer of the group"""
    suites: dict[str, Any] = {
        suite: {
            name: {
                "fvu": 0.10 + 0.01 * place + 0.02 * (size - 1), "cosine": 0.97 - 0.002 * place,
                "l0": 32.0 - 0.05 * (size - 1), "dead_share": 0.01 * size, "dense_share": 0.002,
                "relative_reconstruction_bias": None, "density": [0, 5, 4000],
            }
            for place, (name, size) in enumerate(layers.items())
        }
        for suite, layers in _suites(plan).items()
    }  # fmt: skip
    record = {"scope": "special left out", "num_tokens": 100_000, "suites": suites, **over_layers(plan, suites)}
    other = record | {"scope": "special counted", "num_tokens": 101_000}
    return record | {"density_edges": [1e-3, 1e-2, 1e-1, 1.0], "other_scope": other}


def over_layers(plan: dict[str, Any], suites: dict[str, Any]) -> dict[str, Any]:
    """The means and worst layers of suites and groups, and differences from the first suite: +- 0.001"""

    def summarize(layers: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for key in next(iter(layers.values())):
            values = {name: row[key] for name, row in layers.items() if isinstance(row[key], float)}
            if values:
                mean, worst = sum(values.values()) / len(values), max(values, key=values.__getitem__)
                interval = [mean - 0.001, mean + 0.001]
                found[key] = {"mean": mean, "interval": interval, "worst": values[worst], "worst_layer": worst}
        return found

    groups = {
        suite: {
            group_name(tuple(group)): summarize({name: suites[suite][name] for name in group}) for group in division
        }
        for suite, division in plan["partitions"].items()
    }
    layers = {suite: summarize(found) for suite, found in suites.items()}
    first = next(iter(layers))
    changes = {
        suite: {
            key: {"mean": row["mean"] - layers[first][key]["mean"], "interval": [-0.0005, 0.0005]}
            for key, row in found.items()
        }
        for suite, found in layers.items()
        if suite != first
    }
    return {"layers": layers, "groups": groups, "differences": changes}


def losses_record(plan: dict[str, Any]) -> dict[str, Any]:
    """eval/losses.json: delta CE is 0.03 + 0.002 layer, plus 0.01 for every further layer of the group"""
    clean, zero = 3.0, 9.0
    suites = {}
    for suite, layers in _suites(plan).items():
        suites[suite] = {}
        for place, (name, size) in enumerate(layers.items()):
            delta = 0.03 + 0.002 * place + 0.01 * (size - 1)
            score = (zero - clean - delta) / (zero - clean)
            suites[suite][name] = {"ce": clean + delta, "delta_ce": delta, "ce_score": score, "kl": 0.9 * delta}
    record = {
        "scope": "special left out", "num_tokens": 100_000, "ce_clean": clean, "ce_zero": dict.fromkeys(layers, zero),
        "suites": suites, **over_layers(plan, suites),
        "all_layers": {suite: {"delta_ce": 0.7, "kl": 0.6, "intervals": {"delta_ce": [0.6, 0.8]}} for suite in suites},
    }  # fmt: skip
    return record | {"other_scope": record | {"scope": "special counted"}}


def tokens_record() -> dict[str, Any]:
    """tokens/index.json"""
    return {
        "training_tokens": 9_000_000, "held_out_tokens": 1_000_000, "training_documents": 812,
        "held_out_documents": 90, "context_length": 256, "rows": 39_000,
    }  # fmt: skip
