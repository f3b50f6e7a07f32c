"""The run that a command is about: from the name on the command line to its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groupsae.config import RunConfig, load_config
from groupsae.errors import ConfigError
from groupsae.records import RunDirectory

DEMO_CONFIG = Path(__file__).parents[1] / "text" / "demo" / "demo.toml"


def split_name(verb: str, rest: list[str]) -> tuple[Path | None, list[str]]:
    """The RUN and the flags; no RUN where help is asked for. Raises ConfigError where it is missing."""
    if verb == "demo":
        return DEMO_CONFIG, rest
    if rest and not rest[0].startswith("-"):
        return Path(rest[0]), rest[1:]
    if "-h" in rest or "--help" in rest:
        return None, rest
    raise ConfigError(f"`groupsae {verb}` needs a RUN: a TOML file or a run directory. `groupsae init` writes a file.")


def config_of(name: Path | None) -> RunConfig:
    """The config of a RUN; the defaults without one."""
    if name is None:
        return RunConfig()
    return RunDirectory.open(name).config if name.is_dir() else load_config(name)


def directory_of(name: Path) -> Path:
    """The run directory that a RUN stands for: itself, or a TOML file's below `runs/`."""
    return Path("runs") / load_config(name).name if name.suffix == ".toml" else name


def open_run(name: Path | None, config: RunConfig, options: Any) -> RunDirectory:
    """The run directory of a RUN, under this config, or the one that --out names.

    Raises ConfigError for a model's own code that nobody has said to trust; RunError for a place that
    holds something else.
    """
    config = _trusted(config, options.trust_remote_code)
    if name is not None and name.is_dir() and options.out is None:
        return RunDirectory(name, config)
    return RunDirectory.at(options.out or Path("runs") / config.name, config, overwrite=options.overwrite)


def _trusted(config: RunConfig, trust: bool) -> RunConfig:
    """The config with the person's word on code that comes with a model: a file's word alone does not count."""
    model = config.model
    if model.trust_remote_code and not trust:
        raise ConfigError(
            f"The config asks to run code that comes with model {model.name!r}. If you trust it, say so with "
            "--trust-remote-code, each time."
        )
    return config.model_copy(update={"model": model.model_copy(update={"trust_remote_code": trust})})
