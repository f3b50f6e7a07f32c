"""The first stages: text into rows of tokens, and how alike the layers are."""

from __future__ import annotations

from groupsae.activations.stats import CenteringSource, measure_stats_at, save_stats
from groupsae.grouping.measure import measure_distances
from groupsae.progress import bar, say
from groupsae.recipes.context import ROWS_FILE, STATS_FILE, RunContext
from groupsae.records.types.distances import DistancesRecord
from groupsae.records.types.tokens import TokensRecord
from groupsae.text.tokens import read_rows


def tokenize(bench: RunContext) -> list[str]:
    """Text into rows, with documents held out: `tokens/`."""
    config = bench.run.config.text
    bench.describe()
    with bar("tokens", None) as advance:
        rows = read_rows(
            config.source,
            bench.tokenizer,
            context_length=config.context_length,
            held_out_share=config.held_out_share,
            field=config.field,
            split=config.split,
            max_tokens=config.max_tokens,
            max_held_out_tokens=config.max_held_out_tokens,
            progress=advance,
        )
    bench.run.write(ROWS_FILE, rows.save)
    index = TokensRecord(
        rows=len(rows),
        context_length=rows.context_length,
        training_tokens=rows.ids_RT.size,
        training_documents=rows.num_documents,
        held_out_tokens=rows.held_out.ids_RT.size,
        held_out_documents=rows.held_out.num_documents,
        replaced=rows.num_replaced,
    )
    if rows.num_replaced:
        say(f"tokens: {rows.num_replaced:,} places were not UTF-8 and are read as U+FFFD")
    return [index.write(bench.run), ROWS_FILE]


def measure_layers(bench: RunContext) -> list[str]:
    """Activation statistics and the distances between layers: `stats.safetensors`, `distances.json`.

    The text is read twice: for the statistics of as many tokens as distances and scales need, then for distances and
    for the norms of centered activations.
    """
    config, train, seed = bench.run.config.distances, bench.run.config.train, bench.run.config.seed
    available, wanted = bench.rows.ids_RT.size, {config.num_tokens, train.scale_tokens}
    with bar("statistics", min(max(wanted), available)) as advance:
        stats = measure_stats_at(bench.source, wanted, seed, progress=advance)
    source = CenteringSource(bench.source, stats[train.scale_tokens], seed) if train.center else bench.source
    with bar("distances", min(config.num_tokens, available)) as advance:
        distances = measure_distances(
            config.metric,
            source,
            config.num_tokens,
            seed=seed,
            until_stderr=config.until_stderr,
            progress=advance,
            stats=stats[config.num_tokens],
        )
    if isinstance(source, CenteringSource):
        stats[train.scale_tokens] = source.finish()
    bench.run.write(STATS_FILE, lambda path: save_stats(stats, path))
    return [DistancesRecord(**distances.to_json()).write(bench.run), STATS_FILE]
