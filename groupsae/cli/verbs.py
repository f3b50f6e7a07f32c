"""The verbs, and what each does in a line."""

from __future__ import annotations

from groupsae.errors import ConfigError, unknown

STAGE_VERBS = {
    "tokens": "read text, pack it into rows, hold some documents out",
    "distances": "measure how alike the layers are",
    "group": "divide the layers into groups",
    "plan": "price every division before training: FLOPs, seconds, memory, quality",
    "train": "train one SAE per group, and one per layer to compare with",
    "eval": "measure reconstruction, loss, circuits and similarity on held-out text: all, or those named",
    "report": "write report/index.html",
}
OTHER_VERBS = {
    "run": "all of the above that is not done yet",
    "demo": "the same, on the built-in model and your Python's standard library",
    "transfer": "one SAE per layer, started from those of another run: the layer's before, after, or its group's",
    "experiment": "`experiment transfer RUN`: what such starts save, against SAEs from scratch",
    "export": "write the SAEs of one suite in the files of SAELens or sparsify",
    "show": "what is done, what is missing, and the results so far",
    "init": "write a config file to start from",
}
VERBS = STAGE_VERBS | OTHER_VERBS


def list_verbs() -> str:
    """All verbs, the stages first and in their order."""
    lines = ["stages, in order:", *(f"  {verb:<10} {text}" for verb, text in STAGE_VERBS.items())]
    lines += ["", "and:", *(f"  {verb:<10} {text}" for verb, text in OTHER_VERBS.items())]
    return "\n".join([*lines, "", "`groupsae VERB --help` shows a verb's flags."])


def require_verb(verb: str) -> None:
    """Raises ConfigError for a verb that there is not, naming the nearest."""
    if verb not in VERBS:
        raise ConfigError(unknown("verb", verb, VERBS))
