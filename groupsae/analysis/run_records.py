"""All records of one run, read once, for everything that shows or compares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from groupsae.hookpoints import natural_key
from groupsae.metrics import LOSSES
from groupsae.partition import Partition
from groupsae.records import RunDirectory
from groupsae.records.types.circuits import CircuitsRecord
from groupsae.records.types.distances import DistancesRecord
from groupsae.records.types.interpretability import InterpretabilityRecord
from groupsae.records.types.losses import LossesRecord
from groupsae.records.types.manifest import ModelRecord
from groupsae.records.types.measured import Difference, OverLayers
from groupsae.records.types.partition import PartitionRecord
from groupsae.records.types.plan import PlanRecord
from groupsae.records.types.positions import PositionsRecord
from groupsae.records.types.reconstruction import ReconstructionRecord
from groupsae.records.types.similarity import SimilarityRecord
from groupsae.records.types.suites import SuitesRecord
from groupsae.records.types.tokens import TokensRecord
from groupsae.records.types.training import MetricsLine, TrainRecord

BASELINE, GROUPS = "baseline", "groups"
SUITE_TITLES = {BASELINE: "one SAE per layer", GROUPS: "groups"}


def suite_title(name: str) -> str:
    """What a suite is called in tables and figures."""
    return SUITE_TITLES.get(name, name)


def suite_kind(name: str, partition: Partition) -> str:
    """What kind of suite a name is of: `groups` for `groups-k32`."""
    return name.removesuffix(f"-{partition.variant}") if partition.variant else name


@dataclass(frozen=True)
class RunRecords:
    """The records of one run; None for what is not there yet."""

    name: str
    tokens: TokensRecord | None = None
    positions: PositionsRecord | None = None
    distances: DistancesRecord | None = None
    grouping: PartitionRecord | None = None
    plan: PlanRecord | None = None
    train: TrainRecord | None = None
    trained: SuitesRecord | None = None
    reconstruction: ReconstructionRecord | None = None
    losses: LossesRecord | None = None
    circuits: CircuitsRecord | None = None
    similarity: SimilarityRecord | None = None
    interpretability: InterpretabilityRecord | None = None
    log: tuple[MetricsLine, ...] = ()
    stage_seconds: dict[str, float] = field(default_factory=dict)
    model: ModelRecord | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    """What the run was made with."""
    with_baseline: bool = True
    variants: tuple[str, ...] = ("",)
    """The variants of a sweep; without one there is a single variant, without a name."""
    max_amad: float | None = None
    """The bound on AMAD, if it is what decided."""

    @classmethod
    def read(cls, run: RunDirectory) -> RunRecords:
        """The records of a run. Raises RunError for a damaged file."""
        manifest = run.manifest
        return cls(
            name=run.config.name,
            tokens=TokensRecord.find(run),
            positions=PositionsRecord.find(run),
            distances=DistancesRecord.find(run),
            grouping=PartitionRecord.find(run),
            plan=PlanRecord.find(run),
            train=TrainRecord.find(run),
            trained=SuitesRecord.find(run),
            reconstruction=ReconstructionRecord.find(run),
            losses=LossesRecord.find(run),
            circuits=CircuitsRecord.find(run),
            similarity=SimilarityRecord.find(run),
            interpretability=InterpretabilityRecord.find(run),
            log=MetricsLine.read_all(run),
            stage_seconds={stage: done.seconds for stage, done in manifest.stages.items()},
            model=manifest.model,
            environment=manifest.environment | {"device": manifest.device},
            with_baseline=run.config.train.baseline,
            variants=tuple(variant.name for variant in run.config.variants),
            max_amad=_bound(run),
        )

    # ---- partitions

    @cached_property
    def planned(self) -> dict[str, Partition]:
        """The partitions that would be trained now, by suite."""
        if self.plan is not None:
            return self.plan.partitions
        if self.grouping is None:
            return {}
        chosen = self.grouping.choice.partition
        baseline = {BASELINE: Partition.singletons(chosen.hookpoints)} if self.with_baseline else {}
        return {
            f"{kind}-{variant}" if variant else kind: Partition(partition.groups, variant)
            for variant in self.variants
            for kind, partition in (baseline | {GROUPS: chosen}).items()
        }

    @cached_property
    def partitions(self) -> dict[str, Partition]:
        """The partitions that were trained, or else are planned; the baseline first."""
        found = self.trained.partitions if self.trained is not None else self.planned
        return dict(sorted(found.items(), key=lambda item: item[0] != BASELINE))

    @property
    def is_sweep(self) -> bool:
        """Whether there are several variants."""
        return any(partition.variant for partition in self.partitions.values())

    @property
    def chosen(self) -> Partition | None:
        """The partition into groups that was chosen, if one was; of a sweep, all variants have the same."""
        found = (each for name, each in self.partitions.items() if suite_kind(name, each) == GROUPS)
        return next((partition.base for partition in found), None)

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """The layers of the run, in natural order; empty before any stage names them."""
        if self.distances is not None:
            return self.distances.hookpoints
        return next((partition.hookpoints for partition in self.partitions.values()), ())

    # ---- evaluation

    def evaluation(self, metric: str) -> ReconstructionRecord | LossesRecord | None:
        """The record that holds a metric of layers."""
        return self.losses if metric in LOSSES else self.reconstruction

    def by_layer(self, suite: str, metric: str) -> dict[str, float]:
        """A metric of a suite by layer; layers at which it is undefined are left out."""
        record = self.evaluation(metric)
        layers = record.suites.get(suite, {}) if record is not None else {}
        found = {hookpoint: getattr(row, metric) for hookpoint, row in layers.items()}
        defined = ((hookpoint, value) for hookpoint, value in found.items() if value is not None)
        return dict(sorted(defined, key=lambda item: natural_key(item[0])))

    def over_layers(self, suite: str, metric: str, *, other_scope: bool = False) -> OverLayers | None:
        """A metric over a suite's layers: mean and worst."""
        record = self.evaluation(metric)
        scope = record.other_scope if record is not None and other_scope else record
        return _nested(scope.layers, suite, metric) if scope is not None else None

    def over_group(self, group: str, metric: str) -> OverLayers | None:
        """A metric over the layers of one group."""
        record = self.evaluation(metric)
        return _nested(record.groups, GROUPS, group, metric) if record is not None else None

    def difference(self, suite: str, metric: str) -> Difference | None:
        """How much larger a metric's mean is than that of the suite compared with."""
        record = self.evaluation(metric)
        return _nested(record.differences, suite, metric) if record is not None else None


def _nested(found: Any, *keys: str) -> Any:
    """What lies under these keys; None if one is missing."""
    for key in keys:
        if key not in found:
            return None
        found = found[key]
    return found


def _bound(run: RunDirectory) -> float | None:
    config = run.config
    by_file = Path(config.group.method).suffix in (".toml", ".json")
    return None if by_file or config.group.groups is not None or config.plan.chooses else config.group.max_amad
