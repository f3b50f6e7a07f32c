"""The verbs about transfer: SAEs that start from another run's, and the experiment that says what that saves."""

from __future__ import annotations

from groupsae.cli.flags import changed, read_flags, read_transfer_flags
from groupsae.cli.printing import print_experiment, print_results
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
    train = TrainConfig(**dict(config.train) | {"warm_start": start, "num_tokens": options.num_tokens})
    new_name = config.name if was_warm else f"{config.name}-{start.direction}"
    config = RunConfig(**dict(config) | {"train": train, "name": new_name})
    if name is not None and name.is_dir() and options.out is None:
        options.out = name if was_warm else name.with_name(f"{name.name}-{start.direction}")
    run = open_run(name, config, options)
    from groupsae.recipes import run as recipes

    with run.blamed():
        recipes.run_all(run, overwrite=options.overwrite)
        print_results(run, options.json)


def experiment(rest: list[str]) -> None:
    """`groupsae experiment transfer RUN`, with the stages it needs where they are not done."""
    usage = "groupsae experiment transfer RUN [--json] [--overwrite] [--out DIR]"
    if rest[:1] in (["-h"], ["--help"]):
        print(f"usage: {usage}")
        return
    if rest[:1] != ["transfer"]:
        raise ConfigError(f"There is one experiment, transfer; usage: {usage}")
    name, flags = split_name("experiment transfer", rest[1:])
    config = config_of(name)
    options = read_flags("experiment", flags, config)
    run = open_run(name, changed(config, options), options)
    from groupsae.recipes import run as recipes

    with run.blamed():
        recipes.run_transfer_experiment(run, overwrite=options.overwrite)
        print_experiment(run, options.json)
