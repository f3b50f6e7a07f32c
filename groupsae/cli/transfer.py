"""The verb `transfer`: a run whose SAEs start from another run's."""

from __future__ import annotations

from groupsae.cli.flags import read_transfer_flags
from groupsae.cli.printing import print_results
from groupsae.cli.target import config_of, open_run, split_name
from groupsae.config import RunConfig, TrainConfig, WarmStartConfig
from groupsae.errors import ConfigError


def transfer(rest: list[str]) -> None:
    """`groupsae run` on a config with a warm start, in a run directory of its own."""
    name, flags = split_name("transfer", rest)
    config = config_of(name)
    options = read_transfer_flags(flags, config)
    if options.source is None:
        raise ConfigError("`groupsae transfer` needs --from RUN, the run whose SAEs are started from.")
    was_warm = config.train.warm_start.source is not None
    keys = ("source", "direction", "suite", "learning_rate")
    start = WarmStartConfig(**{key: getattr(options, key) for key in keys})
    train = TrainConfig(
        **dict(config.train) | {"warm_start": start, "num_tokens": options.num_tokens, "imported": None}
    )
    new_name = config.name if was_warm else f"{config.name}-{start.direction}"
    config = RunConfig(**dict(config) | {"train": train, "name": new_name})
    if name is not None and name.is_dir() and options.out is None:
        options.out = name if was_warm else name.with_name(f"{name.name}-{start.direction}")
    run = open_run(name, config, options)
    from groupsae.recipes import run as recipes

    with run.blamed():
        recipes.run_all(run, overwrite=options.overwrite)
        print_results(run, options.json)
