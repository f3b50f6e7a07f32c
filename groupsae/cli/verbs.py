"""The verbs, and what each does in a line."""

from __future__ import annotations

from groupsae.errors import ConfigError, unknown
from groupsae.records import STAGES

STAGE_VERBS = {stage.name: stage.help for stage in STAGES}
OTHER_VERBS = {
    "run": "do all stages that are not done yet",
    "demo": "do all stages on the built-in model and your Python's standard library",
    "harvest": "read activations once and keep them in a cache that later trainings read",
    "transfer": "train one SAE per layer, initialized from another run's SAEs (previous layer, next layer, or group)",
    "merge": "put together a training that was done in parts (`train --part`)",
    "interpret": "have a language model explain latents, and score how well that predicts where they fire",
    "export": "write the SAEs of one suite in the files of SAELens, sparsify or dictionary_learning",
    "import": "read the SAEs of another tool, from a folder or a hub id, into a run directory",
    "push": "upload the SAEs of one suite to the Hugging Face hub, with a card made from the run",
    "pull": "download a suite from the Hugging Face hub, or only the SAEs that some layers need",
    "show": "print what is done, what is missing, and the results so far",
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
