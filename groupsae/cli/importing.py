"""The verb that reads SAEs of other tools into a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupsae.cli.printing import print_json
from groupsae.config import RunConfig, load_config
from groupsae.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """groupsae import: read the SAEs of another tool into a run directory, which then is evaluated like any other.

    Args:
        out: The run directory to write.
        format: saelens, group-sae, sparsify, dictionary_learning, gemma-scope, gemma-scope-2, qwen-scope or
            llama-scope; without it, the files tell.
        model: The language model, a hub id or a folder; without it, the one that the files name.
        only: Parts of the paths of the files to read, such as width_16k/average_l0_71.
        hookpoint: The place that the SAE reads, if no file says it; {layer} stands for its number.
        k: Active latents per token, if no file says it.
        config: A TOML file with the other settings of the run, such as the text to evaluate on.
        overwrite: Replace the SAEs of an earlier import.
        json: Print what was imported as JSON.
    """

    out: Path
    format: str | None = None
    model: str | None = None
    only: tuple[str, ...] = ()
    hookpoint: str | None = None
    k: int | None = None
    config: Path | None = None
    overwrite: bool = False
    json: bool = False


def import_saes(rest: list[str]) -> None:
    """`groupsae import SOURCE --out RUN`."""
    import tyro

    source, flags = _split_source(rest)
    options = tyro.cli(Options, prog="groupsae import SOURCE", args=flags, config=(tyro.conf.FlagCreatePairsOff,))
    base = load_config(options.config) if options.config else RunConfig()
    if options.model:
        base = base.model_copy(update={"model": base.model.model_copy(update={"name": options.model})})
    from groupsae.interop.importing import find_saes
    from groupsae.recipes.import_suite import import_run

    model = base.model.name if base.model != RunConfig().model else None
    found = find_saes(source, options.format, model=model, only=options.only, hookpoint=options.hookpoint, k=options.k)
    written = import_run(found, options.out, base, overwrite=options.overwrite)
    print_json(written) if options.json else _print(written)


def _split_source(rest: list[str]) -> tuple[str, list[str]]:
    """The SOURCE and the flags. Raises ConfigError where it is missing."""
    if rest and not rest[0].startswith("-"):
        return rest[0], rest[1:]
    if "-h" in rest or "--help" in rest:
        return "", rest
    raise ConfigError("`groupsae import` needs a SOURCE: a folder of SAEs or a hub id; and --out, the run to write.")


def _print(written: dict[str, Any]) -> None:
    saes = written["saes"].values()
    layers = [hookpoint for one in saes for hookpoint in one["hookpoints"]]
    kinds = ", ".join(dict.fromkeys(f"{one['architecture']}, {one['d_sae']} latents" for one in saes))
    print(f"{written['run']}: {len(saes)} SAEs of {len(layers)} layers of {written['model']} ({kinds})")
    print(f"evaluate them with `groupsae run {written['run']} --text.source FILES`")
