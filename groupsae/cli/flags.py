"""Flags: made from the config's sections and read by tyro, or the few plain ones of small verbs."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from groupsae.cli.verbs import VERBS
from groupsae.config import Direction, RunConfig, SAEConfig, as_architecture
from groupsae.errors import ConfigError
from groupsae.records import STAGE_NAMES
from groupsae.records.stages import stage_named


class _Flag(NamedTuple):
    name: str
    kind: Any
    default: Any
    text: str = ""


def read_flags(verb: str, flags: list[str], config: RunConfig) -> Any:
    """The verb's flags: its stage's own section flat, what it reads besides under prefixes; others have all."""
    import tyro

    whole = verb not in STAGE_NAMES
    sections = list(RunConfig.model_fields) if whole else list(stage_named(verb).sections)
    if sections and not whole:
        flags = [_without_prefix(flag, sections[-1]) for flag in flags]
    if "sae" in sections:
        config = config.model_copy(update={"sae": _sae_of(config.sae, flags)})
    fields = []
    if verb == "eval":
        names = tyro.conf.Positional[tuple[str, ...]]
        fields += [
            _Flag(
                "parts",
                names,
                (),
                "What to evaluate: reconstruction, losses, circuits, similarity, interpretability. Without a name, "
                "all; the last one only where the contexts stage is done.",
            ),
            _Flag(
                "against",
                Path | None,
                None,
                "Another run, whose suites are evaluated beside this one's on the same tokens.",
            ),
        ]
    for section in sections:
        value = getattr(config, section)
        flat = not whole and section == sections[-1]
        fields.append(_Flag(section, Annotated[type(value), tyro.conf.arg(name="")] if flat else type(value), value))
    return _read(verb, fields, flags)


def read_transfer_flags(flags: list[str], config: RunConfig) -> Any:
    """The flags of `transfer`: what to start from, and how."""
    import tyro

    start, name = config.train.warm_start, tyro.conf.arg(name="from")
    fields = [
        _Flag("source", Annotated[str | None, name], start.source, "The run directory to start from."),
        _Flag(
            "direction",
            Direction,
            start.direction,
            "From the layer before (forward), the layer after (backward), or the SAE that serves the layer.",
        ),
        _Flag("num_tokens", int, config.train.num_tokens, "Tokens each SAE sees."),
        _Flag(
            "suite",
            str | None,
            start.suite,
            "Which suite of the source; else `groups` for group and `baseline` for the others.",
        ),
        _Flag("learning_rate", float | None, start.learning_rate, "Adam's rate; else a third of the run's."),
    ]
    return _read("transfer", fields, flags, place="runs/NAME-DIRECTION")


def changed(config: RunConfig, options: Any) -> RunConfig:
    """The config with the sections that flags may have changed."""
    names = {field.name for field in dataclasses.fields(options)} & set(RunConfig.model_fields)
    return RunConfig(**dict(config) | {name: getattr(options, name) for name in names})


def read_words(rest: list[str], usage: str, *, allowed: tuple[str, ...]) -> tuple[list[str], set[str]]:
    """At most one word, and the flags given; prints the usage for --help. Raises ConfigError for anything else."""
    words = [word for word in rest if not word.startswith("-")]
    flags = {"--help" if word == "-h" else word for word in rest if word.startswith("-")}
    strange = [*sorted(flags - {*allowed, "--help"}), *words[1:]]
    if strange:
        plural = "s" if len(strange) > 1 else ""
        raise ConfigError(f"unrecognized argument{plural}: {' '.join(strange)}. Usage: {usage}")
    if "--help" in flags:
        print(f"usage: {usage}")
    return words, flags


def _without_prefix(flag: str, section: str) -> str:
    """A stage's own keys are flags with and without the section's name: `--text.source` is `--source`."""
    prefix = f"--{section}."
    return f"--{flag.removeprefix(prefix)}" if flag.startswith(prefix) else flag


def _sae_of(sae: SAEConfig, flags: list[str]) -> SAEConfig:
    """The SAE's section for the architecture that a flag asks for; what both architectures have is kept."""
    for flag, value in itertools.pairwise([*flags, ""]):
        name, _, inline = flag.partition("=")
        if name == "--sae.architecture":
            sae = as_architecture(sae, inline or value)
    return sae


def _read(verb: str, fields: list[_Flag], flags: list[str], place: str = "runs/NAME") -> Any:
    """The values of a verb's own flags and of those that all such verbs have."""
    import tyro

    switch = tyro.conf.FlagCreatePairsOff[bool]
    fields = [
        _Flag("overwrite", switch, False, "Replace results that exist."),
        _Flag("json", switch, False, "Print results as JSON."),
        _Flag(
            "trust_remote_code",
            switch,
            False,
            "Run code that comes with the model. Only for models you trust; no file can ask for it.",
        ),
        _Flag("out", Path | None, None, f"The run directory, instead of {place}."),
        *fields,
    ]
    made = [(flag.name, flag.kind, dataclasses.field(default=flag.default)) for flag in fields]
    options = dataclasses.make_dataclass("Options", made)
    told = [f"    {flag.name}: {flag.text}" for flag in fields if flag.text]
    options.__doc__ = "\n".join([f"groupsae {verb}: {VERBS[verb]}.", "", "Args:", *told])
    return tyro.cli(options, prog=f"groupsae {verb} RUN", args=flags)
