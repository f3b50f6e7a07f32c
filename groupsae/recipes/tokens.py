"""The tokens stage: text into rows of tokens, some documents held out."""

from __future__ import annotations

from pathlib import Path

from groupsae.config import RunConfig
from groupsae.progress import bar, say
from groupsae.recipes.context import ROWS_FILE, RunContext
from groupsae.records.types.tokens import TokensRecord
from groupsae.text.documents import source_files
from groupsae.text.tokens import read_rows


def tokenize(ctx: RunContext) -> list[str]:
    """Text into rows, with documents held out: `tokens/`. A fault in hookpoints is an error before text is read."""
    config = ctx.run.config.text
    ctx.describe()
    with bar("tokens", None) as advance:
        rows = read_rows(
            config.source,
            ctx.tokenizer,
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
    ctx.run.write(ROWS_FILE, rows.save)
    index = TokensRecord(
        rows=len(rows),
        context_length=rows.context_length,
        training_tokens=rows.ids_RT.size,
        training_documents=rows.num_documents,
        held_out_tokens=rows.held_out.ids_RT.size,
        held_out_documents=rows.held_out.num_documents,
        replaced=rows.num_replaced,
    )
    for note in rows.notes:
        say(f"tokens: {note}")
    return [index.write(ctx.run), ROWS_FILE]


def text_files(config: RunConfig) -> list[Path]:
    """The files that the text is read from."""
    return source_files(config.text.source)
