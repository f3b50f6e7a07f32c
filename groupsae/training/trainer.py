"""Training: one pass over the model trains every group of every partition side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from groupsae.activations.shuffle import BufferLayout, ShuffledStream
from groupsae.activations.source import ActivationSource
from groupsae.config import ActivationsConfig, PerLayer, SAEConfig, TopKConfig, TrainConfig
from groupsae.errors import ConfigError, PartitionError
from groupsae.partition import Group, Partition, group_name
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.training.checkpoint import Checkpoints
from groupsae.training.fit import fit_layer_maps, measure_scales
from groupsae.training.group_trainer import GroupTrainer
from groupsae.training.hooks import Hooks
from groupsae.training.kernel_choice import KernelChoice
from groupsae.training.loop import Loop
from groupsae.training.microbatch import step_splits
from groupsae.training.warm_start import InitialWeights, WarmStart


@dataclass(frozen=True)
class Trained:
    """What training gave: an SAE per group, the scales, the seconds by part and by group, the kernel of the steps."""

    saes: dict[str, SparseAutoencoder]
    scales: Scales
    seconds: dict[str, float]
    layer_maps: dict[str, LayerMaps] = field(default_factory=dict)
    masked: int = 0
    """Positions that the stream was read without, because their activations are not finite."""
    kernel: KernelChoice = field(default_factory=KernelChoice)

    def suite(self, partition: Partition) -> Suite:
        """The suite of one partition whose groups were all trained."""
        layer_maps = {name: maps for name, maps in self.layer_maps.items() if name in partition.names}
        return Suite(partition, {name: self.saes[name] for name in partition.names}, self.scales, layer_maps)


@dataclass(frozen=True)
class TrainJob:
    """One SAE to be trained: the group it serves, its own settings, and what it starts from, if not from scratch.

    Of the settings, those of batches, logs and saves are the whole training's.
    """

    group: Group
    train: TrainConfig
    start: InitialWeights | None = None
    maps: LayerMaps | None = None


def train(
    source: ActivationSource,
    partition: Partition,
    sae: SAEConfig = TopKConfig(),  # noqa: B008 - frozen
    train: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
    *,
    seed: int = 0,
    buffer_tokens: int = ActivationsConfig().buffer_tokens,
    start: WarmStart | None = None,
    per_layer: PerLayer = PerLayer(),  # noqa: B008 - frozen
    progress: Callable[[int], None] | None = None,
) -> Suite:
    """The suite of a partition: one SAE per group, trained in one pass over the source.

    `Partition.singletons(hookpoints)` is one SAE per layer; only those can `start` from another suite's.
    `per_layer` is what layers have of their own inside a group. Raises PartitionError if the partition names a
    hookpoint that the source does not read, ConfigError for sizes that do not fit each other, NumericalError for NaN.
    """
    _require_possible(source, partition.groups, sae, train, buffer_tokens)
    if start:
        start.require_possible(partition.groups, source.d_model, sae, train)
    scales = measure_scales(source, train.scale_tokens, center=train.center, seed=seed)
    trained = train_groups(
        source,
        partition.groups,
        scales,
        sae,
        train,
        seed=seed,
        buffer_tokens=buffer_tokens,
        starts=start.starts(partition.hookpoints, scales) if start else None,
        layer_maps=fit_layer_maps(
            source,
            partition.groups,
            scales,
            per_layer,
            train.scale_tokens,
            d_sae=sae.width(source.d_model),
            seed=seed,
        ),
        hooks=Hooks(progress=progress),
    )
    return trained.suite(partition)


def train_groups(
    source: ActivationSource,
    groups: Iterable[Group],
    scales: Scales,
    sae: SAEConfig,
    train: TrainConfig,
    *,
    seed: int,
    buffer_tokens: int,
    starts: Mapping[str, InitialWeights] | None = None,
    layer_maps: Mapping[Group, LayerMaps] | None = None,
    checkpoints: Checkpoints | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 - frozen
) -> Trained:
    """An SAE for each distinct group, all trained on the same batches.

    `starts` gives the weights that some begin with, by the group's name, `layer_maps` what layers have of their
    own, by group. The rest is as for `train_together`.
    """
    distinct = dict.fromkeys(Partition((group,)).groups[0] for group in groups)
    starts, layer_maps = starts or {}, layer_maps or {}
    jobs = {
        group_name(group): TrainJob(group, train, starts.get(group_name(group)), layer_maps.get(group))
        for group in distinct
    }
    return train_together(
        source,
        jobs,
        scales,
        sae,
        train,
        seed=seed,
        buffer_tokens=buffer_tokens,
        checkpoints=checkpoints,
        hooks=hooks,
    )


def train_together(
    source: ActivationSource,
    jobs: Mapping[str, TrainJob],
    scales: Scales,
    sae: SAEConfig,
    train: TrainConfig,
    *,
    seed: int,
    buffer_tokens: int,
    checkpoints: Checkpoints | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 - frozen
) -> Trained:
    """An SAE for each job, by name, all trained on the same batches.

    Per batch activations are read once. Each group sees every token at one drawn layer, or in turn at all of its
    layers. Several jobs may be of one group: they see the same, and differ in how they start or how long they train.
    With `checkpoints`, states are saved there every `save_every_tokens`, and training continues from the last one, if
    there is one.
    """
    groups = [job.group for job in jobs.values()]
    _require_possible(source, groups, sae, train, buffer_tokens)
    split = step_splits()
    in_training = [
        GroupTrainer(
            job.group,
            scales,
            source.d_model,
            sae,
            job.train,
            seed,
            name=name,
            start=job.start,
            maps=job.maps,
            split=split,
        )
        for name, job in jobs.items()
    ]
    slots = BufferLayout.of(groups, every_layer=train.layers_per_token == "all")
    num_tokens = max(group.tokens_needed for group in in_training)
    stream = ShuffledStream(source, num_tokens, slots, train.batch_tokens, buffer_tokens, seed)
    loop = Loop(stream, in_training, train, checkpoints, hooks)
    loop.resume()
    loop.choose_kernel()
    loop.run()
    saes = {group.name: group.trained() for group in in_training}
    layer_maps = {group.name: group.maps for group in in_training if group.maps is not None}
    return Trained(saes, scales, loop.seconds, layer_maps, loop.position.masked, loop.kernel or KernelChoice())


def _require_possible(
    source: ActivationSource, groups: Iterable[Group], sae: SAEConfig, train: TrainConfig, buffer_tokens: int
) -> None:
    """Raises, before anything is read, what does not fit together."""
    unknown = sorted({name for group in groups for name in group} - set(source.hookpoints))
    if unknown:
        raise PartitionError(f"{', '.join(unknown)} are not read; the source has {', '.join(source.hookpoints)}.")
    sae.width(source.d_model)
    if buffer_tokens < train.batch_tokens:
        raise ConfigError(
            f"buffer_tokens = {buffer_tokens} holds less than one batch of {train.batch_tokens} tokens; raise "
            "buffer_tokens or lower batch_tokens."
        )
