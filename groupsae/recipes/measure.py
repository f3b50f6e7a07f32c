"""The first stages: text into rows of tokens, and how alike the layers are."""

from __future__ import annotations

from groupsae.grouping.measure import measure_distances
from groupsae.progress import bar, say
from groupsae.recipes.context import ROWS_FILE, RunContext
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
            packing=config.packing,
            special_in_text=config.special_in_text,
            progress=advance,
        )
    bench.run.write(ROWS_FILE, rows.save)
    index = {
        "rows": len(rows),
        "context_length": rows.context_length,
        "training_tokens": rows.ids_RT.size,
        "training_documents": rows.num_documents,
        "held_out_tokens": rows.held_out.ids_RT.size,
        "held_out_documents": rows.held_out.num_documents,
        "replaced": rows.num_replaced,
    }
    for note in rows.notes:
        say(f"tokens: {note}")
    bench.run.write_json("tokens/index.json", index)
    return ["tokens/index.json", ROWS_FILE]


def measure_layers(bench: RunContext) -> list[str]:
    """The distances between layers: `distances.json`."""
    config = bench.run.config.distances
    total = min(config.num_tokens, bench.rows.ids_RT.size)
    with bar("distances", 2 * total) as advance:
        distances = measure_distances(
            config.metric,
            bench.source,
            config.num_tokens,
            seed=bench.run.config.seed,
            until_stderr=config.until_stderr,
            progress=advance,
        )
    bench.run.write_json("distances.json", distances.to_json())
    return ["distances.json"]
