"""The command line: parse a verb, call a recipe, print, turn errors into exit codes.

    groupsae VERB RUN [--flags]          RUN is a TOML file or a run directory

Progress goes to stderr, results to stdout. Exit codes: 0 done, 1 our fault, 2 the user's,
130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import traceback
from pathlib import Path
from signal import SIGINT
from typing import Annotated, Any

from groupsae.config import (
    Direction,
    RunConfig,
    SAEConfig,
    TrainConfig,
    WarmStartConfig,
    as_architecture,
    commented_toml,
    load_config,
)
from groupsae.errors import ConfigError, FitError, GroupsaeError
from groupsae.interrupt import terminable
from groupsae.progress import say
from groupsae.records import STAGE_SECTIONS, RunDirectory
from groupsae.storage import write_atomically

STAGE_VERBS = {
    "tokens": "read text, pack it into rows, hold some documents out",
    "distances": "measure how alike the layers are",
    "group": "divide the layers into groups",
    "plan": "price every division before training: FLOPs, seconds, memory, quality",
    "train": "train one SAE per group, and one per layer to compare with",
    "eval": "measure reconstruction and loss on held-out text, all parts or those named",
    "report": "write report/index.html",
}
OTHER_VERBS = {
    "run": "all of the above that is not done yet",
    "demo": "the same, on the built-in model and your Python's standard library",
    "transfer": "one SAE per layer, started from those of another run: the layer's before, after, or its group's",
    "experiment": "`experiment transfer RUN`: what such starts save, against SAEs from scratch",
    "show": "what is done, what is missing, and the results so far",
    "init": "write a config file to start from",
}
DEMO_CONFIG = Path(__file__).parent / "demo" / "demo.toml"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with terminable():
            return _dispatch(arguments)
    except GroupsaeError as error:
        say(f"{type(error).__name__}: {error}")
        return 2
    except KeyboardInterrupt as stopped:
        say(str(stopped) or "Interrupted. The same command goes on from the last checkpoint.")
        return 128 + getattr(stopped, "signal", SIGINT)
    except BrokenPipeError:
        return 0
    except SystemExit as stop:  # tyro, after help or a wrong flag
        return int(stop.code or 0)
    except Exception:
        traceback.print_exc()
        say("This is a fault of groupsae, not yours. Please report it with the lines above.")
        return 1


def _dispatch(arguments: list[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        print(_usage())
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(version("groupsae"))
        return 0
    if verb == "init":
        return _init(rest)
    if verb == "show":
        return _show(rest)
    if verb == "transfer":
        return _transfer(rest)
    if verb == "experiment":
        return _experiment(rest)
    if verb in STAGE_VERBS or verb in OTHER_VERBS:
        return _run(verb, rest)
    raise ConfigError(_unknown_verb(verb))


def _usage() -> str:
    lines = [(__doc__ or "").strip(), "", "stages, in order:"]
    lines += [f"  {verb:<10} {text}" for verb, text in STAGE_VERBS.items()]
    lines += ["", "and:"]
    lines += [f"  {verb:<10} {text}" for verb, text in OTHER_VERBS.items()]
    lines += ["", "`groupsae VERB --help` shows a verb's flags."]
    return "\n".join(lines)


def _unknown_verb(verb: str) -> str:
    import difflib

    known = [*STAGE_VERBS, *OTHER_VERBS]
    near = difflib.get_close_matches(verb, known, n=1)
    return f"There is no verb {verb!r}; " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}.")


# ---- verbs


def _run(verb: str, rest: list[str]) -> int:
    name, flags = _run_name(verb, rest)
    config = RunConfig() if name is None else _config_of(name)
    options = _parse(verb, flags, config)
    config = _trusted(_changed(config, options), options.trust_remote_code)
    run = _open(name, config, options)
    with run.blamed():
        _do(verb, run, options)
    return 0


def _do(verb: str, run: RunDirectory, options: Any) -> None:
    from groupsae import recipes

    if verb in ("run", "demo"):
        recipes.run_all(run, overwrite=options.overwrite)
        _print_results(run, options.json)
    else:
        try:
            if verb == "eval":
                against = options.against and _directory(options.against)
                recipes.run_parts(run, options.parts, against, overwrite=options.overwrite)
            else:
                recipes.run_stage(run, verb, overwrite=options.overwrite)
        except FitError:
            _print_plan(run, options.json)
            raise
        if verb == "plan":
            _print_plan(run, options.json)
        elif verb == "eval" and options.against:
            _print_comparison(run, _directory(options.against), options.json)
        elif verb in ("eval", "report"):
            _print_results(run, options.json)
        elif options.json:
            print(json.dumps({"run": str(run.path), "stages": {verb: run.stages()[verb]}}))
        elif verb == "train":
            from groupsae import tables

            tables.show(tables.training(run.read_json("train.json")))


def _transfer(rest: list[str]) -> int:
    """`groupsae run` on a config with a warm start, in a run directory of its own."""
    name, flags = _run_name("transfer", rest)
    config = RunConfig() if name is None else _config_of(name)
    options = _transfer_options(config, flags)
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
    run = _open(name, config, options)
    from groupsae import recipes

    recipes.run_all(run, overwrite=options.overwrite)
    _print_results(run, options.json)
    return 0


def _transfer_options(config: RunConfig, flags: list[str]) -> Any:
    import tyro

    start = config.train.warm_start
    source = Annotated[str | None, tyro.conf.arg(name="from")]
    fields: list[Any] = [
        ("source", source, dataclasses.field(default=start.source)),
        ("direction", Direction, dataclasses.field(default=start.direction)),
        ("num_tokens", int, dataclasses.field(default=config.train.num_tokens)),
        ("suite", str | None, dataclasses.field(default=start.suite)),
        ("learning_rate", float | None, dataclasses.field(default=start.learning_rate)),
        *_common_flags(),
    ]
    options = dataclasses.make_dataclass("Options", fields)
    options.__doc__ = """groupsae transfer: one SAE per layer, started from the SAEs of another run.

    Args:
        source: The run directory to start from.
        direction: From the layer before (forward), the layer after (backward), or the SAE that serves the layer.
        num_tokens: Tokens each SAE sees.
        suite: Which suite of the source; else `groups` for group and `baseline` for the others.
        learning_rate: Adam's rate; else a third of the run's.
        overwrite: Replace results that exist.
        json: Print results as JSON.
        out: The run directory, instead of runs/NAME-DIRECTION.
    """
    return tyro.cli(options, prog="groupsae transfer RUN", args=flags)


def _experiment(rest: list[str]) -> int:
    usage = "groupsae experiment transfer RUN [--json] [--overwrite] [--out DIR]"
    if rest[:1] in (["-h"], ["--help"]):
        print(f"usage: {usage}")
        return 0
    if rest[:1] != ["transfer"]:
        raise ConfigError(f"There is one experiment, transfer; usage: {usage}")
    name, flags = _run_name("experiment transfer", rest[1:])
    config = RunConfig() if name is None else _config_of(name)
    options = _parse("experiment", flags, config)
    config = _changed(config, options)
    run = _open(name, config, options)
    from groupsae import recipes, tables
    from groupsae.report.transfer import RECORD, TransferResults

    recipes.run_transfer_experiment(run, overwrite=options.overwrite)
    record = run.read_json(RECORD)
    if options.json:
        print(json.dumps(record))
        return 0
    tables.show(*tables.transfer(TransferResults(record)))
    print(f"report: {run.file('report/transfer.html')}")
    return 0


def _run_name(verb: str, rest: list[str]) -> tuple[Path | None, list[str]]:
    if verb == "demo":
        return DEMO_CONFIG, rest
    if rest and not rest[0].startswith("-"):
        return Path(rest[0]), rest[1:]
    if "-h" in rest or "--help" in rest:
        return None, rest
    raise ConfigError(f"`groupsae {verb}` needs a RUN: a TOML file or a run directory. `groupsae init` writes a file.")


def _config_of(name: Path) -> RunConfig:
    return RunDirectory.open(name).config if name.is_dir() else load_config(name)


def _parse(verb: str, flags: list[str], config: RunConfig) -> Any:
    """The verb's flags: its stage's own section flat, what it reads besides under prefixes; `run` has all."""
    import tyro

    whole = verb in ("run", "demo", "experiment")
    sections = list(RunConfig.model_fields) if whole else list(STAGE_SECTIONS[verb])
    if "sae" in sections:
        config = config.model_copy(update={"sae": _sae_of(config.sae, flags)})
    fields = _common_flags()
    if verb == "eval":
        fields += [
            ("parts", tyro.conf.Positional[tuple[str, ...]], dataclasses.field(default=())),
            ("against", Path | None, dataclasses.field(default=None)),
        ]
    for section in sections:
        value = getattr(config, section)
        kind = type(value)
        if not whole and section == sections[-1]:
            kind = Annotated[kind, tyro.conf.arg(name="")]
        fields.append((section, kind, dataclasses.field(default=value)))
    options = dataclasses.make_dataclass("Options", fields)
    options.__doc__ = f"""groupsae {verb}: {(STAGE_VERBS | OTHER_VERBS)[verb]}.

    Args:
        overwrite: Replace results that exist.
        json: Print results as JSON.
        trust_remote_code: Run code that comes with the model. Only for models you trust; no file can ask for it.
        out: The run directory, instead of runs/NAME.
        parts: What to measure; everything, if nothing is named.
        against: Another run, whose suites are evaluated beside this one's on the same tokens.
    """
    return tyro.cli(options, prog=f"groupsae {verb} RUN", args=flags)


def _sae_of(sae: SAEConfig, flags: list[str]) -> SAEConfig:
    """The SAE's section for the architecture that a flag asks for; what both architectures have is kept."""
    for flag, value in itertools.pairwise([*flags, ""]):
        name, _, inline = flag.partition("=")
        if name == "--sae.architecture":
            sae = as_architecture(sae, inline or value)
    return sae


def _common_flags() -> list[Any]:
    import tyro

    switch = tyro.conf.FlagCreatePairsOff[bool]
    return [
        ("overwrite", switch, dataclasses.field(default=False)),
        ("json", switch, dataclasses.field(default=False)),
        ("trust_remote_code", switch, dataclasses.field(default=False)),
        ("out", Path | None, dataclasses.field(default=None)),
    ]


def _changed(config: RunConfig, options: Any) -> RunConfig:
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name in RunConfig.model_fields
    }
    return RunConfig(**(dict(config) | given))


def _trusted(config: RunConfig, trust: bool) -> RunConfig:
    """The config with the person's word on code that comes with a model: a file's word alone does not count."""
    model = config.model
    if model.trust_remote_code and not trust:
        raise ConfigError(
            f"The config asks to run code that comes with model {model.name!r}. If you trust it, say so with "
            "--trust-remote-code, each time."
        )
    return config.model_copy(update={"model": model.model_copy(update={"trust_remote_code": trust})})


def _open(name: Path | None, config: RunConfig, options: Any) -> RunDirectory:
    if name is not None and name.is_dir() and options.out is None:
        return RunDirectory(name, config)
    return RunDirectory.at(options.out or Path("runs") / config.name, config, overwrite=options.overwrite)


def _init(rest: list[str]) -> int:
    words, flags = _words(rest, "groupsae init [NAME.toml]", allowed=())
    if flags:
        return 0
    path = Path(words[0] if words else "groupsae.toml")
    if path.exists():
        raise ConfigError(f"{path} exists; give another name: `groupsae init NAME.toml`.")
    text = commented_toml(RunConfig(name=path.stem))
    write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    print(f"wrote {path}; run it with `groupsae run {path}`")
    return 0


def _show(rest: list[str]) -> int:
    words, flags = _words(rest, "groupsae show RUN [--json] [--verify]", allowed=("--json", "--verify"))
    if "--help" in flags:
        return 0
    if not words:
        raise ConfigError("`groupsae show` needs a run directory.")
    run = RunDirectory.open(_directory(Path(words[0])))
    with run.blamed():
        if "--verify" in flags:
            run.require_intact()
            say(f"every file of {run.path} is as it was written")
        _print_results(run, "--json" in flags)
    return 0


def _directory(path: Path) -> Path:
    """The run directory that a path names: itself, or a TOML file's below `runs/`."""
    return Path("runs") / load_config(path).name if path.suffix == ".toml" else path


def _words(rest: list[str], usage: str, *, allowed: tuple[str, ...]) -> tuple[list[str], set[str]]:
    """At most one word, and the flags given; prints the usage for --help. Raises ConfigError for anything else."""
    words = [word for word in rest if not word.startswith("-")]
    flags = {"--help" if word == "-h" else word for word in rest if word.startswith("-")}
    strange = [*sorted(flags - {*allowed, "--help"}), *words[1:]]
    if strange:
        raise ConfigError(f"{' '.join(strange)} is too much; usage: {usage}")
    if "--help" in flags:
        print(f"usage: {usage}")
    return words, flags


def _print_results(run: RunDirectory, as_json: bool) -> None:
    from groupsae.report.summary import summarise

    suites = summarise(run)
    train = run.read_json("train.json") if run.file("train.json").exists() else {"groups": {}, "num_tokens": 0}
    if as_json:
        values = {"run": str(run.path), "stages": run.stages(), "suites": [dataclasses.asdict(s) for s in suites]}
        values |= {"saes": train["groups"], "tokens_saved": train.get("tokens_saved", 0)}
        print(json.dumps(values))
        return
    from groupsae import tables

    tables.show(tables.stages(run), *([tables.suites(suites)] if suites else []), *tables.lineages(train))
    if tables.saved_tokens(train):
        print(tables.saved_tokens(train))
    if run.file("report/index.html").exists():
        print(f"report: {run.file('report/index.html')}")


def _print_comparison(run: RunDirectory, against: Path, as_json: bool) -> None:
    from groupsae.report.comparison import label_of, read_against

    found = next(one for one in read_against(run) if one.label == label_of(against))
    if as_json:
        print(json.dumps({"run": str(run.path), **found.as_record()}))
        return
    from groupsae import tables

    tables.show(tables.suites(found.summaries))


def _print_plan(run: RunDirectory, as_json: bool) -> None:
    plan = run.read_json("plan.json")
    if as_json:
        print(json.dumps(plan))
        return
    from groupsae import tables

    tables.show(tables.prices(plan), *([tables.methods(plan)] if len(plan["methods"]) > 1 else []))
    print(tables.verdict(plan))
