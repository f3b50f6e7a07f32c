"""The stages of a run, in order: what each is called, reads of the config, reads from outside, and runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupsae.config import RunConfig
from groupsae.storage import digest


@dataclass(frozen=True)
class Stage:
    """One step of a run, and the verb of the same name.

    help        what it does, in a line
    sections    the sections of the config that it is the first to read
    run         `module:function`, loaded when the stage is run. The function takes a RunContext and returns the names
                of the files it wrote, or None where a part of the stage is still missing
    inputs      `module:function` likewise, from a RunConfig to the files from outside the run that the stage reads:
                it is out of date once they have changed
    standalone  whether it makes do with what there is: a plan can be made before a model is loaded
    together    whether all ranks do it, if there are several; else rank 0 does, and the others wait
    without     earlier stages that it is not made from
    """

    name: str
    help: str
    sections: tuple[str, ...]
    run: str
    inputs: str = ""
    standalone: bool = False
    together: bool = False
    without: tuple[str, ...] = ()

    def load(self) -> Callable[[Any], list[str] | None]:
        """The function that does the stage."""
        return _load(self.run)

    def input_files(self, config: RunConfig) -> list[Path]:
        """The files from outside the run that the stage reads under a config."""
        return _load(self.inputs)(config) if self.inputs else []


def _load(place: str) -> Callable[[Any], Any]:
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)


STAGES = (
    Stage(
        "tokens",
        "read text, pack it into rows, keep some documents for evaluation",
        ("model", "text"),
        "groupsae.recipes.tokens:tokenize",
        "groupsae.recipes.tokens:text_files",
    ),
    Stage(
        "distances",
        "measure how far apart the layers are",
        ("activations", "distances"),
        "groupsae.recipes.distances:measure_layers",
        "groupsae.recipes.run_cache:cache_files",
        together=True,
    ),
    Stage(
        "group",
        "divide the layers into groups",
        ("group",),
        "groupsae.recipes.group:group",
        "groupsae.recipes.group:partition_files",
    ),
    Stage(
        "plan",
        "predict what each number of groups costs and gives, before training",
        ("sae", "train", "plan"),
        "groupsae.recipes.plan:plan",
        standalone=True,
    ),
    Stage(
        "train",
        "train one SAE per group, and one per layer to compare with",
        ("sae", "train"),
        "groupsae.recipes.train:train",
        together=True,
    ),
    Stage(
        "contexts",
        "find text on which each latent fires, the tokens it promotes, and its neighbors",
        ("contexts",),
        "groupsae.recipes.contexts:contexts",
    ),
    Stage(
        "eval",
        "evaluate on held-out text: reconstruction, losses, circuits, similarity, interpretability",
        ("circuits", "eval"),
        "groupsae.recipes.eval:evaluate",
        "groupsae.recipes.eval:task_files",
        together=True,
        without=("contexts",),
    ),
    Stage(
        "browse",
        "write browser/index.html: every latent on a page of its own",
        (),
        "groupsae.recipes.browse:browse",
        without=("eval",),
    ),
    Stage("report", "write report/index.html", (), "groupsae.recipes.report:report", standalone=True),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)
_NAMED = {stage.name: stage for stage in STAGES}

SECTIONS_OF_A_PART = ("circuits",)
"""The sections that only the part of a stage reads whose file bears their name."""
_WITHOUT_EFFECT = {
    "model": {"device", "trust_remote_code"},
    "train": {"log_every_tokens", "save_every_tokens", "keep_checkpoints", "snapshots", "report_to"},
}
MAY_CHANGE = tuple(f"{section}.{key}" for section, keys in _WITHOUT_EFFECT.items() for key in sorted(keys))
"""Config keys that may change when a run is resumed."""


SWEEP_KEYS = ("seeds", "other_saes")
"""Keys of no section that stages read together with the section of the SAEs."""


def stage_named(name: str) -> Stage:
    """The stage of this name."""
    return _NAMED[name]


def has_effect(difference: str) -> bool:
    """Whether a difference, such as `model.device: 'auto' -> 'cpu'`, can change a result."""
    section, key = _key_of(difference)
    return section not in _WITHOUT_EFFECT or key not in _WITHOUT_EFFECT[section]


def readers_of(difference: str) -> tuple[str, ...]:
    """The stages that read the key of a difference themselves; all of them for a key of no section."""
    section, key = _key_of(difference)
    if section in SWEEP_KEYS:
        section, key = "sae", section
    found = tuple(stage.name for stage in STAGES if key and section in stage.sections)
    return found or STAGE_NAMES


def _key_of(difference: str) -> tuple[str, str]:
    section, _, key = difference.partition(":")[0].partition(".")
    return section, key


def stages_of(config: RunConfig) -> tuple[str, ...]:
    """The stages of a run: one whose SAEs come from elsewhere compares no layers and divides nothing."""
    given = config.train.warm_start.source is not None or config.train.imported is not None
    return tuple(name for name in STAGE_NAMES if not given or name not in ("distances", "group", "plan"))


def stages_before(config: RunConfig, stage: str) -> tuple[str, ...]:
    """The stages that a stage is made from: those before it; a plan only counts where it decides something."""
    own = stages_of(config)
    if stage == "train" and config.train.imported is not None:
        return ()
    counts = stage == "report" or config.plan.chooses
    left_out = {*stage_named(stage).without, *(() if counts else ("plan",))}
    return tuple(name for name in own[: own.index(stage)] if name not in left_out)


def fingerprint(config: RunConfig, stage: str, part: str = "") -> str:
    """What a stage's result depends on, as a hash: its config sections and those of all stages before it.

    Of a part of a stage, named by its file: without the sections that only another part reads.
    """
    values: dict[str, Any] = {"seed": config.seed}
    for earlier in (*stages_before(config, stage), stage):
        sections = stage_named(earlier).sections
        imported = stage == "train" and config.train.imported is not None  # reads no activations
        if earlier == "train" and "distances" not in stages_of(config) and not imported:
            sections = ("activations", *sections)
        for section in sections:
            if part and section in SECTIONS_OF_A_PART and section != Path(part).stem:
                continue
            dumped = getattr(config, section).model_dump(mode="json")
            ignored = _WITHOUT_EFFECT.get(section, set())
            values[section] = {key: value for key, value in dumped.items() if key not in ignored}
            if section == "sae" and (config.other_saes or config.seeds):
                values["sweep"] = [(one.name, one.seed, one.sae.model_dump(mode="json")) for one in config.variants]
    return digest(values)
