"""Flags: made from the config's sections and read by tyro, or the few plain ones of small verbs."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from groupsae.activations.cache_format import Dtype
from groupsae.cli.verbs import VERBS
from groupsae.config import Direction, RunConfig, SAEConfig, Section, as_architecture
from groupsae.errors import ConfigError
from groupsae.records import STAGE_NAMES
from groupsae.records.stages import stage_named

_LISTS = {
    key
    for kind in get_args(SAEConfig)
    for key, field in kind.model_fields.items()
    if get_origin(field.annotation) is tuple
}
"""Keys of SAEs that hold several values."""


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
    sweeps = "sae" in sections
    sections = [section for section in sections if section != "other_saes"]
    fields = []
    if verb == "train":
        text = "Train only a part of the SAEs, such as 3/16, in a job of its own; `groupsae merge` joins all parts."
        fields.append(_Flag("part", str | None, None, text))
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
    if not sweeps:
        return _read(verb, [*fields, *_section_flags(config, sections, whole)], flags)
    found = []
    for sae, chosen in itertools.product(config.saes, _settings(flags)):
        of_setting = config.model_copy(update={"sae": _sae_of(sae, chosen)})
        found.append(_read(verb, [*fields, *_section_flags(of_setting, sections, whole)], chosen))
    options = found[0]
    options.sae = tuple(each.sae for each in found)
    if len(config.saes) > 1:  # a flag may give several tables the same value: they are one setting then
        options.sae = tuple(dict.fromkeys(options.sae))
    return options


def _section_flags(config: RunConfig, sections: list[str], whole: bool) -> list[_Flag]:
    """A flag for each section, that of the verb's own stage flat, and for each key of no section."""
    import tyro

    flags = []
    for section in sections:
        value, help = getattr(config, section), RunConfig.model_fields[section].description or ""
        if not isinstance(value, Section):
            flags.append(_Flag(section, RunConfig.model_fields[section].annotation, value, help))
        elif not whole and section == sections[-1]:
            flags.append(_Flag(section, Annotated[type(value), tyro.conf.arg(name="")], value))
        else:
            flags.append(_Flag(section, type(value), value))
    return flags


def _settings(flags: list[str]) -> list[list[str]]:
    """The flags once for each SAE setting that they ask for: `--sae.k 16 32` asks for two, another such key for four.

    A key that is a list itself, as `--sae.prefixes`, has all of its values in every setting.
    """
    words: list[list[str]] = []
    for flag in flags:
        if flag.startswith("-") or not words:
            words.append([flag])
        else:
            words[-1].append(flag)
    choices = [_choices(name, values) for name, *values in words]
    return [[word for chosen in setting for word in chosen] for setting in itertools.product(*choices)]


def _choices(name: str, values: list[str]) -> list[list[str]]:
    """A flag with each of its values alone, if it is a key of an SAE that takes one value; else with all of them."""
    key = name.removeprefix("--sae.").replace("-", "_")
    one_value = name.startswith("--sae.") and key not in _LISTS
    return [[name, value] for value in values] if one_value and len(values) > 1 else [[name, *values]]


def read_harvest_flags(flags: list[str], config: RunConfig) -> Any:
    """The flags of `harvest`: what to keep and where, and the sections that decide what is read."""
    fields = [
        _Flag("num_tokens", int | None, None, "Tokens of the training text to keep; else all."),
        _Flag("held_out_tokens", int | None, None, "Tokens of the held-out text to keep; else all."),
        _Flag("dtype", Dtype, "bfloat16", "Precision of the kept activations; int8 has a scale per token and layer."),
        *(_Flag(name, type(getattr(config, name)), getattr(config, name)) for name in ("model", "text", "activations")),
    ]
    out = "The folder of the cache, instead of activations.cache or `activations` in the run directory."
    return _read("harvest", fields, flags, out=out)


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
    return _read("transfer", fields, flags, out="The run directory, instead of runs/NAME-DIRECTION.")


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


def _read(
    verb: str, fields: list[_Flag], flags: list[str], out: str = "The run directory, instead of runs/NAME."
) -> Any:
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
        _Flag("out", Path | None, None, out),
        *fields,
    ]
    made = [(flag.name, flag.kind, dataclasses.field(default=flag.default)) for flag in fields]
    options = dataclasses.make_dataclass("Options", made)
    told = [f"    {flag.name}: {flag.text}" for flag in fields if flag.text]
    options.__doc__ = "\n".join([f"groupsae {verb}: {VERBS[verb]}.", "", "Args:", *told])
    return tyro.cli(options, prog=f"groupsae {verb} RUN", args=flags)
