"""The command line: parse a verb, call a recipe, print, turn errors into exit codes.

    groupsae VERB RUN [--flags]          RUN is a TOML file or a run directory

Progress goes to stderr, results to stdout. Exit codes: 0 done, 1 our fault, 2 the user's.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

from groupsae.config import RunConfig, commented_toml, load_config
from groupsae.errors import ConfigError, FitError, GroupsaeError
from groupsae.progress import say
from groupsae.records import STAGE_SECTIONS, RunDirectory, write_atomically

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
    "show": "what is done, what is missing, and the results so far",
    "init": "write a config file to start from",
}
DEMO_CONFIG = Path(__file__).parent / "demo" / "demo.toml"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _dispatch(arguments)
    except GroupsaeError as error:
        say(f"{type(error).__name__}: {error}")
        return 2
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on from the last checkpoint.")
        return 130
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
    config = _changed(config, options)
    run = _open(name, config, options)
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

    whole = verb in ("run", "demo")
    sections = list(RunConfig.model_fields) if whole else list(STAGE_SECTIONS[verb])
    fields: list[Any] = [
        ("overwrite", tyro.conf.FlagCreatePairsOff[bool], dataclasses.field(default=False)),
        ("json", tyro.conf.FlagCreatePairsOff[bool], dataclasses.field(default=False)),
        ("out", Path | None, dataclasses.field(default=None)),
    ]
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
        out: The run directory, instead of runs/NAME.
        parts: What to measure; everything, if nothing is named.
        against: Another run, whose suites are evaluated beside this one's on the same tokens.
    """
    return tyro.cli(options, prog=f"groupsae {verb} RUN", args=flags)


def _changed(config: RunConfig, options: Any) -> RunConfig:
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name in RunConfig.model_fields
    }
    return RunConfig(**(dict(config) | given))


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
    words, flags = _words(rest, "groupsae show RUN [--json]", allowed=("--json",))
    if "--help" in flags:
        return 0
    if not words:
        raise ConfigError("`groupsae show` needs a run directory.")
    _print_results(RunDirectory.open(_directory(Path(words[0]))), "--json" in flags)
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
    if as_json:
        values = {"run": str(run.path), "stages": run.stages(), "suites": [dataclasses.asdict(s) for s in suites]}
        print(json.dumps(values))
        return
    from groupsae import tables

    tables.show(tables.stages(run), *([tables.suites(suites)] if suites else []))
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
