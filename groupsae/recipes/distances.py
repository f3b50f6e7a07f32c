"""The distances stage: how far apart the layers are."""

from __future__ import annotations

from groupsae.activations.stats import CenteringSource, measure_stats_at, save_stats
from groupsae.grouping.measure import measure_distances
from groupsae.progress import bar
from groupsae.recipes.context import STATS_FILE, RunContext
from groupsae.records.types.distances import DistancesRecord


def measure_layers(ctx: RunContext) -> list[str]:
    """Activation statistics and the distances between layers: `stats.safetensors`, `distances.json`.

    The text is read twice: for the statistics of as many tokens as distances and scales need, then for distances and
    for the norms of centered activations.
    """
    config, train, seed = ctx.run.config.distances, ctx.run.config.train, ctx.run.config.seed
    ranks = ctx.ranks
    available, wanted = ctx.rows.ids_RT.size, {config.num_tokens, train.scale_tokens}
    with bar("statistics", min(max(wanted), available)) as advance:
        stats = measure_stats_at(ctx.source, wanted, seed, progress=advance, ranks=ranks)
    source = CenteringSource(ctx.source, stats[train.scale_tokens], seed, ranks) if train.center else ctx.source
    with bar("distances", min(config.num_tokens, available)) as advance:
        distances = measure_distances(
            config.metric,
            source,
            config.num_tokens,
            seed=seed,
            until_stderr=config.until_stderr,
            progress=advance,
            stats=stats[config.num_tokens],
            ranks=ranks,
        )
    if isinstance(source, CenteringSource):
        stats[train.scale_tokens] = source.finish()
    ctx.run.write(STATS_FILE, lambda path: save_stats(stats, path))
    files = [DistancesRecord(**distances.to_json()).write(ctx.run), STATS_FILE]
    return [*files, *ctx.note_positions()]
