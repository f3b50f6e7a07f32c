"""The pilot: a few SAEs on few tokens, from which the quality of every partition is predicted."""

from __future__ import annotations

from collections.abc import Sequence

from groupsae.activations.source import ActivationSource
from groupsae.config import SAEConfig, TrainConfig
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.grouping.choose import equal
from groupsae.grouping.criteria import layer_proxies
from groupsae.grouping.distances import Distances
from groupsae.partition import Partition
from groupsae.planning.fvu_law import FvuLaw, PilotPoint, fit_pilot
from groupsae.progress import bar
from groupsae.training.fit import measure_scales
from groupsae.training.hooks import Hooks
from groupsae.training.optim import learning_rate
from groupsae.training.trainer import train_groups

SHARE_OF_RUN = 0.02
"""Most of the run's SAE steps, counted in tokens, that a pilot may cost."""
STRETCHES = (1.0, 0.5, 0.25)
"""Numbers of tokens, as shares of the largest: each is a schedule of its own, run to its end."""
LEAST_STEPS = 32
"""Steps of the shortest stretch, which small batches make possible."""


def run_pilot(
    source: ActivationSource,
    held_out: ActivationSource,
    distances: Distances,
    sae: SAEConfig,
    train: TrainConfig,
    *,
    run_saes: int,
    eval_tokens: int,
    seed: int,
) -> FvuLaw:
    """The law of FVU on this model, from SAEs of the run's own size on at most 2 % of its tokens.

    Trained are one SAE for all layers, one for each half of them, and one each for the first, the
    middle and the last layer, at three numbers of tokens. Batches are small, so that even these
    take steps enough; the learning rate goes with the root of the batch, as is usual for Adam.
    """
    partitions = pilot_partitions(distances.hookpoints)
    groups = tuple(dict.fromkeys(group for partition in partitions for group in partition.groups))
    most = pilot_tokens(len(groups), run_saes, train.num_tokens)
    points: list[PilotPoint] = []
    scales = measure_scales(source, min(train.scale_tokens, most), center=train.center, seed=seed)
    with bar("pilot", int(most * sum(STRETCHES))) as advance:
        for stretch in STRETCHES:
            settings = pilot_settings(train, max(1, int(most * stretch)), int(most * min(STRETCHES)), sae, source)
            trained = train_groups(
                source,
                groups,
                scales,
                sae,
                settings,
                seed=seed,
                buffer_tokens=max(settings.batch_tokens, settings.num_tokens // 2),
                hooks=Hooks(progress=advance),
            )
            suites = {str(partition): trained.suite(partition) for partition in partitions}
            found = evaluate_reconstructions(suites, held_out, eval_tokens, seed=seed).suites
            for partition in partitions:
                proxies, layers = proxies_of(distances, partition), found[str(partition)]
                points += [PilotPoint(name, proxies[name], settings.num_tokens, r.fvu) for name, r in layers.items()]
    return fit_pilot(points)


def pilot_partitions(hookpoints: Sequence[str]) -> tuple[Partition, ...]:
    """All layers in one group, in two halves, and the first, middle and last alone."""
    single = dict.fromkeys((hookpoints[0], hookpoints[len(hookpoints) // 2], hookpoints[-1]))
    chunks = (equal(hookpoints, count) for count in dict.fromkeys((1, min(2, len(hookpoints)))))
    return (*chunks, Partition.singletons(single))


def pilot_tokens(pilot_saes: int, run_saes: int, num_tokens: int) -> int:
    """Tokens of the longest stretch: those of all stretches and SAEs together are 2 % of the run's."""
    return int(SHARE_OF_RUN * run_saes * num_tokens / (pilot_saes * sum(STRETCHES)))


def pilot_settings(
    train: TrainConfig, num_tokens: int, shortest: int, sae: SAEConfig, source: ActivationSource
) -> TrainConfig:
    """The run's settings, with batches small enough for the shortest stretch and a learning rate to match."""
    batch = max(16, min(train.batch_tokens, shortest // LEAST_STEPS))
    rate = train.learning_rate or learning_rate(sae.width(source.d_model))
    return train.model_copy(
        update={
            "num_tokens": num_tokens,
            "batch_tokens": batch,
            "learning_rate": rate * (batch / train.batch_tokens) ** 0.5,
            "log_every_tokens": num_tokens,
        }
    )


def proxies_of(distances: Distances, partition: Partition) -> dict[str, float]:
    """Each layer's mean-angle proxy; layers that the partition does not hold count as groups of one."""
    alone = tuple((name,) for name in distances.hookpoints if name not in partition.hookpoints)
    whole = Partition((*partition.groups, *alone))
    return dict(zip(distances.hookpoints, layer_proxies(distances, whole).tolist(), strict=True))
