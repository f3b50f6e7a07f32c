"""What the verbs do, but for those about transfer: stages, all of them, `show` and `init`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groupsae.cli.flags import changed, read_flags, read_words
from groupsae.cli.printing import print_comparison, print_json, print_plan, print_results, print_training
from groupsae.cli.target import config_of, directory_of, open_run, split_name
from groupsae.cli.verbs import STAGE_VERBS
from groupsae.config import RunConfig, commented_toml
from groupsae.errors import ConfigError, FitError
from groupsae.progress import say
from groupsae.records import RunDirectory
from groupsae.storage import write_text


def run(verb: str, rest: list[str]) -> None:
    """One stage, or with `run` and `demo` all that are not done."""
    name, flags = split_name(verb, rest)
    config = config_of(name)
    options = read_flags(verb, flags, config)
    opened = open_run(name, changed(config, options), options)
    with opened.blamed():
        if verb not in STAGE_VERBS:
            from groupsae.recipes import run as recipes

            recipes.run_all(opened, overwrite=options.overwrite)
            print_results(opened, options.json)
        else:
            _run_stage(verb, opened, options)


def _run_stage(verb: str, run: RunDirectory, options: Any) -> None:
    from groupsae.recipes import run as recipes

    against = directory_of(options.against) if verb == "eval" and options.against else None
    try:
        if verb == "train" and options.part:
            from groupsae.recipes.parts import Part, train_part

            train_part(run, Part.of(options.part))
            return
        if verb == "eval":
            recipes.run_parts(run, options.parts, against, overwrite=options.overwrite)
        else:
            recipes.run_stage(run, verb, overwrite=options.overwrite)
    except FitError:
        print_plan(run, options.json)
        raise
    if verb == "plan":
        print_plan(run, options.json)
    elif against:
        print_comparison(run, against, options.json)
    elif verb in ("eval", "report"):
        print_results(run, options.json)
    elif options.json:
        print_json({"run": str(run.path), "stages": {verb: run.stages()[verb].model_dump(exclude_unset=True)}})
    elif verb == "train":
        print_training(run)


def show(rest: list[str]) -> None:
    """What a run has; with --verify whether its files are as they were written."""
    words, flags = read_words(rest, "groupsae show RUN [--json] [--verify]", allowed=("--json", "--verify"))
    if "--help" in flags:
        return
    if not words:
        raise ConfigError("`groupsae show` needs a run directory.")
    run = RunDirectory.open(directory_of(Path(words[0])))
    with run.blamed():
        if "--verify" in flags:
            run.require_intact()
            say(f"every file of {run.path} is as it was written")
        print_results(run, "--json" in flags)


def merge(rest: list[str]) -> None:
    """Put together the parts of a training, of a run directory and of copies of it."""
    usage = "groupsae merge RUN [COPY ...]"
    words = [word for word in rest if not word.startswith("-")]
    flags = set(rest) - set(words)
    if flags & {"-h", "--help"}:
        print(f"usage: {usage}")
        return
    if flags or not words:
        raise ConfigError(f"`groupsae merge` needs a run directory, and no flags. Usage: {usage}")
    run = RunDirectory.open(directory_of(Path(words[0])))
    from groupsae.recipes.parts import merge as put_together

    with run.blamed():
        put_together(run, [Path(word) for word in words[1:]])
        print_training(run)


def init(rest: list[str]) -> None:
    """Write a config file with every key and what it means. Raises ConfigError if the file exists."""
    words, flags = read_words(rest, "groupsae init [NAME.toml]", allowed=())
    if flags:
        return
    path = Path(words[0] if words else "groupsae.toml")
    if path.exists():
        raise ConfigError(f"{path} exists; give another name: `groupsae init NAME.toml`.")
    write_text(path, commented_toml(RunConfig(name=path.stem)))
    print(f"wrote {path}; run it with `groupsae run {path}`")
