"""Run directories built from the record types, with invented numbers that behave like real ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from groupsae import metrics
from groupsae.analysis.run_records import RunRecords
from groupsae.config import GroupConfig, ModelConfig, RunConfig, TrainConfig, WarmStartConfig
from groupsae.estimate import Estimate
from groupsae.metrics import units
from groupsae.partition import Group, Partition, group_name
from groupsae.records import STAGE_NAMES, RunDirectory
from groupsae.records.types.candidate import Candidate, Cost, TokenFlops
from groupsae.records.types.distances import DistancesRecord
from groupsae.records.types.losses import LossesRecord, LossesScope
from groupsae.records.types.manifest import ModelRecord
from groupsae.records.types.measured import AblatedLoss, Difference, LossMetrics, OverLayers, ReconstructionMetrics
from groupsae.records.types.partition import PartitionRecord
from groupsae.records.types.plan import ComputeOptimal, PlanRecord, StepRates
from groupsae.records.types.reconstruction import ReconstructionRecord, ReconstructionScope
from groupsae.records.types.record import Record
from groupsae.records.types.suites import SuitesRecord
from groupsae.records.types.tokens import TokensRecord
from groupsae.records.types.training import KernelRecord, LoggedSAE, MetricsLine, TrainedSAE, TrainRecord

LM_MFLOP, SAE_MFLOP = 200.0, 100.0
OWN_LM_MFLOP, OWN_SAE_MFLOP = 180.0, 20.0
LM_SECONDS, SAE_SECONDS = 1200.0, 90.0
NUM_TOKENS = 2_000_000
SECONDS = {"tokens": 12.5, "distances": 95.0, "group": 0.2, "eval": 388.0}
LINKAGES = {"optimal": "average", "complete": "complete", "published": "weighted", "equal": None}
"""What stands in for each method here: a linkage, or equal chunks."""

Groups = Sequence[Sequence[str]]


def hookpoints(layers: int) -> list[str]:
    """`layers.0`, `layers.1`, ..."""
    return [f"layers.{index}" for index in range(layers)]


def make_run(
    path: Path,
    layers: int = 8,
    stages: tuple[str, ...] = STAGE_NAMES[:-1],
    model: str = "demo",
    names: list[str] | None = None,
    source: str | None = None,
    **choices: Any,
) -> RunDirectory:
    """A run of which these stages are done; `source` is a run whose SAEs it starts from."""
    made = Builder(names or hookpoints(layers), **choices)
    config = RunConfig(
        name=path.name,
        model=ModelConfig(name=model),
        group=GroupConfig(max_amad=0.2),
        train=TrainConfig(num_tokens=NUM_TOKENS, baseline=made.baseline, warm_start=WarmStartConfig(source=source)),
    )
    run = RunDirectory.at(path, config)
    run.adopt()
    for stage in stages:
        files = [record.write(run) for record in made.records(stage)]
        if stage == "train":
            run.write_json(SuitesRecord.path, made.suites.model_dump(mode="json"))
            for line in made.log():
                run.append_json(MetricsLine.path, line.model_dump(mode="json"))
            files += [SuitesRecord.path, MetricsLine.path]
        run.finish(stage, SECONDS.get(stage, 1.0), files)
    if stages:
        run.describe(ModelRecord(name=model, blocks=len(made.names) + 1, d_model=256, parameters=19_123_456))
    return run


def change_plan(run: RunDirectory, **changes: Any) -> RunDirectory:
    """The run with these fields of its plan changed."""
    PlanRecord.read(run).model_copy(update=changes).write(run)
    return run


def change_candidates(run: RunDirectory, **changes: Any) -> RunDirectory:
    """The run with these fields of every candidate of its plan changed."""
    plan = PlanRecord.read(run)
    changed = {name: tuple(one.model_copy(update=changes) for one in found) for name, found in plan.candidates.items()}
    return change_plan(run, candidates=changed, choice=plan.choice.model_copy(update=changes))


def records_of(**plan: Any) -> RunRecords:
    """A run of which only a plan is known."""
    return RunRecords(name="hand", plan=plan_record(**plan))


def cost(number: int, **changes: Any) -> Cost:
    """What so many SAEs cost."""
    published = TokenFlops(language_model=LM_MFLOP, saes=SAE_MFLOP * number)
    own = TokenFlops(language_model=OWN_LM_MFLOP, saes=OWN_SAE_MFLOP * number)
    return Cost(
        **{
            "published_mflop": published,
            "own_mflop": own,
            "published_flops": NUM_TOKENS * published.total * 1e6,
            "own_flops": NUM_TOKENS * own.total * 1e6,
            "seconds": LM_SECONDS + SAE_SECONDS * number,
            "device_bytes": 0,
            "host_bytes": (500 + 10 * number) * 2**20,
            "disk_bytes": 25 * number * 2**20,
        }
        | changes
    )


def plan_record(
    method: str, candidates: dict[str, tuple[Candidate, ...]], choice: Candidate, suites: dict[str, Any], **changes: Any
) -> PlanRecord:
    """A plan with a pilot and timed batches."""
    saes = len({tuple(group) for groups in suites.values() for group in groups})
    rates = StepRates(read_per_token=6e-4, step=0.01, batch_tokens=256)
    known = {"why": "smallest G with AMAD < 0.2", "run": cost(saes), "rates": rates, "pilot": True}
    return PlanRecord(
        method=method,
        candidates=candidates,
        choice=choice,
        suites=suites,
        **{"compute_optimal": None} | known | changes,
    )


@dataclass
class Builder:
    """The records of one run, stage by stage."""

    names: list[str]
    baseline: bool = True
    groups: Groups | None = None
    logged: int = 200
    pilot: bool = True

    def __post_init__(self) -> None:
        self.matrix = distance_matrix(len(self.names))
        numbers = range(1, len(self.names) + 1)
        self.candidates = {method: tuple(self._candidate(method, number) for number in numbers) for method in LINKAGES}
        self.choice = next(one for one in self.candidates["complete"] if one.amad < 0.2)
        if self.groups is not None:
            alike = [
                one for one in self.candidates["complete"] if one.groups == Partition(as_groups(self.groups)).groups
            ]
            self.choice = alike[0] if alike else self._described("by hand", Partition(as_groups(self.groups)))
        alone = {"baseline": Partition.singletons(self.names).groups} if self.baseline else {}
        self.suites = SuitesRecord(alone | {"groups": self.choice.groups})

    def records(self, stage: str) -> Iterable[Record]:
        """What a stage writes."""
        makers = {
            "tokens": lambda: (tokens_record(),),
            "distances": lambda: (self.distances(),),
            "group": lambda: (self.grouping(),),
            "plan": lambda: (self.plan(),),
            "train": lambda: (self.train(),),
            "eval": lambda: (self.reconstruction(), self.losses()),
        }
        return makers[stage]() if stage in makers else ()

    def distances(self) -> DistancesRecord:
        """distances.json"""
        return DistancesRecord(
            metric="angular",
            hookpoints=tuple(self.names),
            matrix=self.matrix.tolist(),
            standard_error=np.full_like(self.matrix, 0.0004).tolist(),
            num_tokens=1_000_000,
        )

    def grouping(self) -> PartitionRecord:
        """partition.json: the same candidates, without cost and predictions"""
        unknown = {"cost": None, "fvu": None, "fvu_increase": None}
        candidates = {
            name: tuple(one.model_copy(update=unknown) for one in found) for name, found in self.candidates.items()
        }
        choice = self.choice.model_copy(update=unknown)
        return PartitionRecord(choice=choice, why="smallest G with AMAD < 0.2", candidates=candidates)

    def plan(self) -> PlanRecord:
        """plan.json"""
        trained = len({group for groups in self.suites.root.values() for group in groups})
        best = ComputeOptimal(
            budget_flops=NUM_TOKENS * (OWN_LM_MFLOP + OWN_SAE_MFLOP * trained) * 1e6,
            num_groups=2,
            num_tokens=3_456_789,
            fvu=Estimate(0.111, 0.1, 0.123),
        )
        return plan_record(
            "complete",
            self.candidates,
            self.choice,
            self.suites.root,
            pilot=self.pilot,
            compute_optimal=best if self.pilot else None,
        )

    def train(self) -> TrainRecord:
        """train.json: every SAE took 100 s"""
        trained = self._trained()
        seconds = {"language model": 1000.0, "SAE steps": 100.0 * len(trained), "other": 50.0}
        return TrainRecord(
            num_tokens=NUM_TOKENS,
            tokens_saved=0,
            d_model=256,
            d_sae=4096,
            k=32,
            seconds=seconds,
            saes={
                name: TrainedSAE(tokens=NUM_TOKENS, hookpoints=group, seconds=100.0) for name, group in trained.items()
            },
            scales=dict.fromkeys(self.names, 0.05),
            kernel=KernelRecord(name="gather"),
        )

    def log(self) -> Iterable[MetricsLine]:
        """metrics.jsonl"""
        for index in range(1, self.logged + 1):
            groups = {}
            for place, (name, group) in enumerate(self._trained().items()):
                floor = 0.08 + 0.01 * (place % 9) + 0.015 * (len(group) - 1) ** 0.7
                fvu = floor + 0.9 * math.exp(-9 * index / self.logged) + 0.004 * math.sin(3.1 * index + place)
                groups[name] = logged_sae(fvu, index)
            yield MetricsLine(step=index * 10, tokens=NUM_TOKENS * index // self.logged, groups=groups)

    def reconstruction(self) -> ReconstructionRecord:
        """FVU is 0.10 + 0.01 layer, plus 0.02 for every further layer of the group"""
        suites = {
            suite: {
                name: ReconstructionMetrics(
                    fvu=0.10 + 0.01 * place + 0.02 * (size - 1),
                    explained_variance_per_token=0.85,
                    cosine=0.97 - 0.002 * place,
                    l0=32.0 - 0.05 * (size - 1),
                    l1=2.0,
                    l2_ratio=0.95,
                    relative_reconstruction_bias=None,
                    dead_share=0.01 * size,
                    silent_share=0.01,
                    dense_share=0.002,
                    density=(0, 5, 4000),
                    intervals={},
                )
                for place, (name, size) in enumerate(layers.items())
            }
            for suite, layers in self._sizes().items()
        }
        counted = {"num_tokens": 100_000, "num_rows": 400, "suites": suites}
        known = counted | self._over_layers(suites, metrics.RECONSTRUCTION)
        return ReconstructionRecord(
            scope="outliers left out",
            units=units(metrics.RECONSTRUCTION),
            density_edges=(1e-3, 1e-2, 1e-1, 1.0),
            other_scope=ReconstructionScope(scope="all positions", **known | {"num_tokens": 101_000}),
            **known,
        )

    def losses(self) -> LossesRecord:
        """Delta CE is 0.03 + 0.002 layer, plus 0.01 for every further layer of the group"""
        suites = {
            suite: {
                name: spliced(0.03 + 0.002 * place + 0.01 * (size - 1))
                for place, (name, size) in enumerate(layers.items())
            }
            for suite, layers in self._sizes().items()
        }
        ablated = AblatedLoss(ce_zero=9.0, kl_zero=6.0, ce_mean=8.0, kl_mean=5.0)
        known = {
            "num_tokens": 100_000,
            "num_rows": 400,
            "ce_clean": 3.0,
            "ablated": dict.fromkeys(self.names, ablated),
            "suites": suites,
            **self._over_layers(suites, metrics.LOSSES),
            "all_layers": {suite: spliced(0.7, kl=0.6, intervals={"delta_ce": (0.6, 0.8)}) for suite in suites},
            "all_layers_ablated": dict.fromkeys(suites, ablated),
            "all_layers_differences": {},
        }
        other = LossesScope(scope="all positions", **known)
        return LossesRecord(scope="outliers left out", units=units(metrics.LOSSES), other_scope=other, **known)

    def _over_layers(self, suites: dict[str, dict[str, Any]], table: dict[str, metrics.Metric]) -> dict[str, Any]:
        """Means and worst layers of suites and groups, and differences from the first suite: +- 0.001"""
        layers = {suite: over_layers(found, table) for suite, found in suites.items()}
        first = next(iter(layers))
        return {
            "layers": layers,
            "groups": {
                suite: {
                    group_name(group): over_layers({name: suites[suite][name] for name in group}, table)
                    for group in groups
                }
                for suite, groups in self.suites.root.items()
            },
            "compared_with": first,
            "differences": {
                suite: {
                    key: Difference(mean=row.mean - layers[first][key].mean, interval=(-0.0005, 0.0005))
                    for key, row in found.items()
                    if row.mean is not None
                }
                for suite, found in layers.items()
                if suite != first
            },
        }

    def _trained(self) -> dict[str, Group]:
        partitions = self.suites.partitions.values()
        return {name: group for one in partitions for name, group in zip(one.names, one.groups, strict=True)}

    def _sizes(self) -> dict[str, dict[str, int]]:
        """The size of each layer's group, by suite."""
        return {
            suite: {name: len(group) for group in groups for name in group}
            for suite, groups in self.suites.root.items()
        }

    def _candidate(self, method: str, number: int) -> Candidate:
        labels = [number * place // len(self.names) for place in range(len(self.names))]
        if LINKAGES[method] is not None and len(self.names) > 1:
            labels = list(fcluster(linkage(squareform(self.matrix), LINKAGES[method]), number, "maxclust"))
        return self._described(method, Partition.from_labels(self.names, labels))

    def _described(self, method: str, partition: Partition) -> Candidate:
        place = {name: index for index, name in enumerate(self.names)}
        sizes = [len(group) for group in partition.groups]
        blocks = [self.matrix[np.ix_([place[n] for n in g], [place[n] for n in g])] for g in partition.groups]
        widest = [float(block.max()) for block in blocks]
        excess = 2 * sum(float(block.mean(axis=0).sum()) for block in blocks) / len(self.names)
        value = (0.105 + 0.005 * len(self.names)) * (1 + excess)
        return Candidate(
            method=method,
            groups=partition.groups,
            amad=fmean(widest),
            size_weighted_amad=sum(w * s for w, s in zip(widest, sizes, strict=True)) / sum(sizes),
            largest_diameter=max(widest),
            cost=cost(len(partition)),
            fvu=Estimate(value, value / 1.1, value * 1.1) if self.pilot else None,
            fvu_increase=Estimate(excess, excess / 1.5, excess * 1.5),
        )


def as_groups(groups: Groups) -> tuple[Group, ...]:
    """Lists of names as groups."""
    return tuple(map(tuple, groups))


def distance_matrix(size: int) -> np.ndarray:
    """Neighbors are alike, early layers change fastest: 0.5 is never passed."""
    depth = np.array([math.sqrt(index) + 0.06 * index for index in range(size)])
    depth = depth / max(depth[-1], 1e-9)
    wobble = 0.01 * np.sin(np.add.outer(np.arange(size) * 1.7, np.arange(size) * 1.7))
    matrix = 0.46 * np.abs(np.subtract.outer(depth, depth)) ** 0.8 + np.abs(wobble)
    matrix = np.round(np.clip((matrix + matrix.T) / 2, 0, 0.5), 6)
    np.fill_diagonal(matrix, 0.0)
    return matrix


def logged_sae(fvu: float, index: int = 1, learning_rate: float = 2e-4) -> LoggedSAE:
    """What the log says of one SAE."""
    return LoggedSAE(
        tokens=index,
        loss=fvu + 0.01 / index,
        auxk=0.001,
        fvu=fvu,
        l0=32.0,
        dead_share=0.02,
        skipped=0,
        spikes=0,
        largest_loss=1.0,
        learning_rate=learning_rate,
    )


def spliced(
    delta: float, kl: float | None = None, intervals: dict[str, tuple[float, float]] | None = None
) -> LossMetrics:
    """Losses with this delta CE, for a clean loss of 3 nats and 9 nats at zero."""
    return LossMetrics(
        ce=3.0 + delta,
        delta_ce=delta,
        kl=0.9 * delta if kl is None else kl,
        ce_score=(6.0 - delta) / 6.0,
        kl_score=None,
        ce_score_mean=None,
        kl_score_mean=None,
        intervals=intervals or {},
    )


def over_layers(layers: dict[str, Any], table: dict[str, metrics.Metric]) -> dict[str, OverLayers]:
    """Mean with an interval of +- 0.001, and the largest value as the worst."""
    found = {}
    for key in table:
        values = {name: getattr(row, key) for name, row in layers.items() if getattr(row, key) is not None}
        if not values:
            found[key] = OverLayers(mean=None)
            continue
        mean, worst = fmean(values.values()), max(values, key=values.__getitem__)
        interval = (mean - 0.001, mean + 0.001)
        found[key] = OverLayers(mean=mean, interval=interval, worst=values[worst], worst_layer=worst)
    return found


def tokens_record() -> TokensRecord:
    """tokens/index.json"""
    return TokensRecord(
        rows=39_000,
        context_length=256,
        training_tokens=9_000_000,
        training_documents=812,
        held_out_tokens=1_000_000,
        held_out_documents=90,
    )
