"""The stages of a run, in order, and what of the config each depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groupsae.config import RunConfig
from groupsae.storage import digest

STAGES = ("tokens", "distances", "group", "plan", "train", "eval", "report")

STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "tokens": ("model", "text"),
    "distances": ("activations", "distances"),
    "group": ("group",),
    "plan": ("sae", "train", "plan"),
    "train": ("sae", "train"),
    "eval": ("circuits", "eval"),
    "report": (),
}
"""The config sections that each stage reads first; it depends on those of all stages before it as well."""

SECTIONS_OF_A_PART = ("circuits",)
"""The sections that only the part of a stage reads whose file bears their name."""

_WITHOUT_EFFECT = {
    "model": {"device", "trust_remote_code"},
    "train": {"log_every_tokens", "save_every_tokens", "keep_checkpoints", "snapshots"},
}
MAY_CHANGE = tuple(f"{section}.{key}" for section, keys in _WITHOUT_EFFECT.items() for key in sorted(keys))
"""The keys that a run may be gone on with under another value."""


def has_effect(difference: str) -> bool:
    """Whether a difference, such as `model.device: 'auto' -> 'cpu'`, can change a result."""
    section, _, key = difference.partition(":")[0].partition(".")
    return key not in _WITHOUT_EFFECT.get(section, ())


def stages_of(config: RunConfig) -> tuple[str, ...]:
    """The stages of a run: one that starts from another run's SAEs compares no layers and divides nothing."""
    warm = config.train.warm_start.source is not None
    return tuple(stage for stage in STAGES if not warm or stage not in ("distances", "group", "plan"))


def stages_before(config: RunConfig, stage: str) -> tuple[str, ...]:
    """The stages that a stage is made from: those before it; a plan only counts where it decides something."""
    own = stages_of(config)
    counts = stage == "report" or config.plan.chooses
    return tuple(name for name in own[: own.index(stage)] if name != "plan" or counts)


def fingerprint(config: RunConfig, stage: str, part: str = "") -> str:
    """What a stage's result depends on, as a hash: its config sections and those of all stages before it.

    Of a part of a stage, named by its file: without the sections that only another part reads.
    """
    values: dict[str, Any] = {"seed": config.seed}
    for earlier in (*stages_before(config, stage), stage):
        sections = STAGE_SECTIONS[earlier]
        if earlier == "train" and "distances" not in stages_of(config):
            sections = ("activations", *sections)
        for section in sections:
            if part and section in SECTIONS_OF_A_PART and section != Path(part).stem:
                continue
            dumped = getattr(config, section).model_dump(mode="json")
            values[section] = {k: v for k, v in dumped.items() if k not in _WITHOUT_EFFECT.get(section, ())}
    return digest(values)
