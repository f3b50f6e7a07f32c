"""Training: one pass over the model trains every group of every partition side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from groupsae.activations.shuffle import BufferLayout, ShuffledStream
from groupsae.activations.source import ActivationSource
from groupsae.config import ActivationsConfig, PerLayer, SAEConfig, TopKConfig, TrainConfig
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import ConfigError, PartitionError
from groupsae.partition import Group, Partition, group_name
from groupsae.planning.cluster import ClusterPlan, assign, latent_slices
from groupsae.planning.cost import sparse_step_flops
from groupsae.records.types.lineage import Lineage
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.layer_maps import LayerMaps
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.training.checkpoint import Checkpoints
from groupsae.training.cut import Cut
from groupsae.training.cut_saes import why_not_cut
from groupsae.training.fit import fit_layer_maps, measure_scales
from groupsae.training.group_trainer import GroupTrainer, tokens_needed
from groupsae.training.hooks import Hooks
from groupsae.training.kernel_choice import KernelChoice
from groupsae.training.loop import Loop
from groupsae.training.microbatch import step_splits
from groupsae.training.warm_start import InitialWeights, WarmStart


@dataclass(frozen=True)
class Trained:
    """What training gave: an SAE per group, the scales, the seconds by part and by group, the kernel of the steps.

    Of several ranks each has the SAEs and layer maps of its own groups only; `seconds` are those of all ranks together.
    """

    saes: dict[str, SparseAutoencoder]
    scales: Scales
    seconds: dict[str, float]
    layer_maps: dict[str, LayerMaps] = field(default_factory=dict)
    masked: int = 0
    """Positions that the stream was read without, because their activations are not finite."""
    kernel: KernelChoice = field(default_factory=KernelChoice)
    lineages: dict[str, Lineage] = field(default_factory=dict)
    """Of every SAE, whichever rank has it."""
    rank_seconds: list[dict[str, float]] = field(default_factory=list)
    """What each rank did with its time: reading, exchanging, training, saving, waiting, other."""

    def suite(self, partition: Partition) -> Suite:
        """The suite of one partition whose groups were all trained."""
        layer_maps = {name: maps for name, maps in self.layer_maps.items() if name in partition.names}
        return Suite(partition, {name: self.saes[name] for name in partition.names}, self.scales, layer_maps)


@dataclass(frozen=True)
class TrainJob:
    """One SAE to be trained: the group it serves, its own settings, and what it starts from, if not from scratch.

    Of the settings, those of batches, logs and saves are the whole training's. Without a section or a seed of its own
    it takes the whole training's; its seed decides first weights only.
    """

    group: Group
    train: TrainConfig
    start: InitialWeights | None = None
    maps: LayerMaps | None = None
    sae: SAEConfig | None = None
    seed: int | None = None

    def own_seed(self, seed: int) -> int:
        """Its own seed, or else this one."""
        return seed if self.seed is None else self.seed


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
    ranks: Ranks = ALONE,
    read_cost: float = 0.0,
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
        ranks=ranks,
        read_cost=read_cost,
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
    ranks: Ranks = ALONE,
    read_cost: float = 0.0,
) -> Trained:
    """An SAE for each job, by name, all trained on the same batches.

    Per batch activations are read once. Each group sees every token at one drawn layer, or in turn at all of its
    layers. Several jobs may be of one group: they see the same, and differ in SAE, seed, start or how long they train.
    With `checkpoints`, states are saved there every `save_every_tokens`, and training continues from the last one, if
    there is one.

    With several `ranks` each trains its own jobs (`plan_ranks`), to the same bits as if it trained all. `read_cost`,
    the FLOPs of reading one token, decides how the reading is divided.
    """
    groups = [job.group for job in jobs.values()]
    for section in dict.fromkeys(job.sae or sae for job in jobs.values()):
        _require_possible(source, groups, section, train, buffer_tokens)
    if hooks.eval and not ranks.alone:
        raise ConfigError("Evaluations during training need every SAE in one process; train without torchrun.")
    plan = plan_ranks(jobs, ranks.size, sae, source.d_model, read_cost)
    owned = [
        [name for name, owners in zip(jobs, plan.owners, strict=True) if rank in owners] for rank in range(ranks.size)
    ]
    if hooks.planned and not ranks.alone:
        hooks.planned(plan)
    cuts = _cuts(jobs, plan, sae, source.d_model, ranks)
    split = step_splits()
    in_training = [
        GroupTrainer(
            jobs[name].group,
            scales,
            source.d_model,
            jobs[name].sae or sae,
            jobs[name].train,
            jobs[name].own_seed(seed),
            name=name,
            start=jobs[name].start,
            maps=jobs[name].maps,
            split=split,
            cut=cuts.get(name),
        )
        for name in owned[ranks.rank]
    ]
    every_layer = train.layers_per_token == "all"
    layouts = [BufferLayout.of([jobs[name].group for name in names], every_layer=every_layer) for names in owned]
    stream = ShuffledStream(
        source,
        max(tokens_needed(job.group, job.train) for job in jobs.values()),
        layouts[ranks.rank],
        train.batch_tokens,
        buffer_tokens,
        seed,
        ranks=ranks,
        layouts=layouts,
        row_counts=plan.row_counts,
    )
    loop = Loop(stream, in_training, train, checkpoints, hooks, {name: job.group for name, job in jobs.items()})
    loop.resume()
    loop.choose_kernel()
    loop.run()
    return _trained(loop, scales, ranks)


def plan_ranks(
    jobs: Mapping[str, TrainJob], num_ranks: int, sae: SAEConfig, d_model: int, read_cost: float = 0.0
) -> ClusterPlan:
    """Which rank trains which job and which share of the rows it reads: a function of its arguments alone.

    Costs are FLOPs of sparse steps. `sae` is the section of jobs that have none of their own; `read_cost` is as for
    `train_together`. Dictionaries are cut only where there are more ranks than jobs: a piece is not trained to the
    same bits as the whole.
    """
    num_tokens = max(tokens_needed(job.group, job.train) for job in jobs.values())
    sections = [job.sae or sae for job in jobs.values()]
    flops = [sparse_step_flops(d_model, section.width(d_model), section.k) for section in sections]
    costs = [float(job.train.num_tokens * each) for job, each in zip(jobs.values(), flops, strict=True)]
    may_cut = num_ranks > len(jobs) and not why_not_cut_any(jobs, sae)
    return assign(costs, num_ranks, read_cost=read_cost * num_tokens, may_cut=may_cut)


def why_not_cut_any(jobs: Mapping[str, TrainJob], sae: SAEConfig) -> str:
    """Why the dictionaries of these jobs are not cut over ranks; empty if they can be."""
    if any(job.maps is not None for job in jobs.values()):
        return "the layer maps of group.layer_maps are not divided among pieces"
    return next((why for job in jobs.values() if (why := why_not_cut(job.sae or sae))), "")


def _cuts(
    jobs: Mapping[str, TrainJob], plan: ClusterPlan, sae: SAEConfig, d_model: int, ranks: Ranks
) -> dict[str, Cut]:
    """This rank's pieces of dictionaries that are cut, by the job's name."""
    found: dict[str, Cut] = {}
    shared: dict[tuple[int, ...], Ranks | None] = {}
    for (name, job), owners in zip(jobs.items(), plan.owners, strict=True):
        if len(owners) == 1:
            continue
        if owners not in shared:
            shared[owners] = ranks.subset(owners)
        together = shared[owners]
        if together is not None:
            found[name] = Cut(together, latent_slices((job.sae or sae).width(d_model), len(owners)))
    return found


def _trained(loop: Loop, scales: Scales, ranks: Ranks) -> Trained:
    trained = {group: group.trained() for group in loop.groups}  # pieces are joined, which takes all their ranks
    saes = {group.name: sae for group, sae in trained.items() if group.cut is None or group.cut.ranks.first}
    told = ranks.gather({name: sae.lineage.model_dump(mode="json") for name, sae in saes.items() if sae.lineage})
    lineages = {name: Lineage.model_validate(values) for one in told for name, values in one.items()}
    return Trained(
        saes,
        scales,
        loop.seconds,
        {group.name: group.maps for group in loop.groups if group.maps is not None},
        loop.position.masked,
        loop.kernel or KernelChoice(),
        {name: lineages[name] for name in loop.names},
        loop.rank_seconds,
    )


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
