"""The verb that keeps a run's activations on disk."""

from __future__ import annotations

from groupsae.cli.flags import changed, read_harvest_flags
from groupsae.cli.printing import print_json
from groupsae.cli.target import config_of, open_run, split_name
from groupsae.units import format_bytes


def harvest(rest: list[str]) -> None:
    """`groupsae harvest RUN`: `--out` names the folder of the cache, not the run directory."""
    name, flags = split_name("harvest", rest)
    config = config_of(name)
    options = read_harvest_flags(flags, config)
    folder, options.out = options.out, None
    run = open_run(name, changed(config, options), options)
    from groupsae.recipes import harvest as recipe

    with run.blamed():
        written = recipe.harvest(
            run,
            folder,
            num_tokens=options.num_tokens,
            held_out_tokens=options.held_out_tokens,
            dtype=options.dtype,
        )
    if options.json:
        print_json(written)
        return
    tokens = written["tokens"]
    print(
        f"{written['folder']}: {tokens['train']:,} tokens to train on and {tokens['held_out']:,} held out, at "
        f"{len(written['hookpoints'])} hookpoints in {written['dtype']}, {format_bytes(written['bytes'])}"
    )
    print(f"read by: groupsae run {name} --activations.cache {written['folder']}")
