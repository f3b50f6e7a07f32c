"""The browse stage: a folder of pages that shows every latent of the run."""

from __future__ import annotations

from groupsae.browser.write import PAGE, write_browser
from groupsae.interpretability.store import ContextStore
from groupsae.progress import bar, say
from groupsae.recipes.context import RunContext


def browse(ctx: RunContext) -> list[str]:
    """Write `browser/`; its page opens from a file."""
    with bar("browse", sum(one.d_sae for one in ContextStore(ctx.run).dictionaries), "latents") as advance:
        written = write_browser(ctx.run, advance)
    say(f"browser: {ctx.run.file(PAGE)}")
    return written
