"""The transfer experiment: what starting from another layer's SAE, or from a group's, saves.

    python experiments/transfer.py RUN [--num-tokens N] [--looks N] [the flags of `groupsae run`]

RUN is a TOML file or a run directory. The stages up to train are done first where they are not; they train the base
SAEs. Then SAEs started forward, backward and from their group are trained in one pass, with SAEs from scratch beside
them, and evaluated in equal steps; then SAEs from scratch for what groups and specialization cost together. Prints
tables, or with --json the record; writes `experiment/transfer.json` and `report/transfer.html` into the run. Each part
is kept when it is done, so that an interrupted experiment is continued by the same command.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfer_costs import Spending
from transfer_page import PAGE, write_transfer_report
from transfer_results import DIRECTIONS, RECORD, TransferResults
from transfer_tables import transfer_tables

from groupsae import Partition, Suite, TrainConfig, WarmStart, evaluate_losses
from groupsae.cli import exit_code
from groupsae.cli.flags import changed, read_flags
from groupsae.cli.printing import print_json
from groupsae.cli.tables import show
from groupsae.cli.target import config_of, open_run
from groupsae.errors import ConfigError, RunError
from groupsae.evaluation.matched import TOLERANCE, fvu_at_equal_l0
from groupsae.evaluation.measures import Measured
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.progress import bar, say
from groupsae.recipes.context import RunContext
from groupsae.recipes.run import alone, run_all
from groupsae.records import RunDirectory
from groupsae.saes.base import SparseAutoencoder
from groupsae.storage import digest
from groupsae.training.checkpoint import Checkpoints
from groupsae.training.hooks import EvalHook, Hooks
from groupsae.training.trainer import Trained, TrainJob, train_together

FOLDER = "experiment"


@dataclass(frozen=True)
class Settings:
    """The experiment's own settings; all others are the run's config."""

    num_tokens: int
    """Tokens each SAE sees that starts from another."""
    looks: int
    """How often these SAEs are evaluated while they train, at equal distances."""


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment that the command line asks for; returns the exit code."""
    return exit_code(_command, sys.argv[1:] if arguments is None else arguments)


def _command(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="A TOML file or a run directory.")
    tokens_help = "Tokens each SAE sees that starts from another. (default: half of train.num_tokens)"
    parser.add_argument("--num-tokens", type=int, help=tokens_help)
    looks_help = "How often these SAEs are evaluated while they train. (default: 5)"
    parser.add_argument("--looks", type=int, default=5, help=looks_help)
    own, flags = parser.parse_known_args(arguments)
    config = config_of(own.run)
    options = read_flags("run", flags, config)
    run = open_run(own.run, changed(config, options), options)
    settings = Settings(own.num_tokens or run.config.train.num_tokens // 2, own.looks)
    with run.blamed():
        results = transfer_experiment(run, settings, overwrite=options.overwrite)
        if options.json:
            print_json(results.record)
        else:
            show(*transfer_tables(results))
            print(f"report: {run.file(PAGE)}")


def transfer_experiment(run: RunDirectory, settings: Settings, *, overwrite: bool = False) -> TransferResults:
    """The results of the whole experiment, with the stages up to train first; as they are kept, if it is done.

    Raises ConfigError for a run without a baseline or with a warm start, RunError if results of another config would
    be replaced without `overwrite`.
    """
    _require_possible(run, settings)
    if not overwrite and run.file(RECORD).exists():
        record = run.read_json(RECORD)
        if run.status("train") != "done" or record["key"] != _key(run, settings):
            raise RunError(
                f"{run.file(RECORD)} was made from another config. Replace it with --overwrite, or give --out."
            )
        say(f"{run.path} holds the experiment already (--overwrite makes it again)")
        return TransferResults(record)
    run_all(run, until="train", overwrite=overwrite)
    with alone(run):
        return _make(RunContext(run, overwrite), settings)


def _require_possible(run: RunDirectory, settings: Settings) -> None:
    train = run.config.train
    if not train.baseline or train.warm_start.source:
        raise ConfigError(
            "The transfer experiment trains its base SAEs itself, one per layer: set train.baseline = true and "
            "leave out train.warm_start.source."
        )
    if settings.num_tokens < 1 or settings.looks < 1:
        raise ConfigError("--num-tokens and --looks must be greater than 0.")
    if settings.num_tokens < settings.looks * train.batch_tokens:
        raise ConfigError(
            f"{settings.looks} looks at {settings.num_tokens:,} tokens need batches smaller than train.batch_tokens = "
            f"{train.batch_tokens}; raise --num-tokens or lower --looks."
        )


def _make(ctx: RunContext, settings: Settings) -> TransferResults:
    """The whole experiment on a run whose train stage is done: `experiment/transfer.json`, `report/transfer.html`."""
    run = ctx.run
    experiment = _Experiment(ctx, settings)
    zero_shot = experiment.once("zero-shot", experiment.zero_shot)
    looks, seconds = experiment.transfers()
    record = {
        "key": experiment.key,
        "hookpoints": ctx.hookpoints,
        "num_tokens": {
            "base": run.config.train.num_tokens,
            "transfer": settings.num_tokens,
            "eval": run.config.eval.num_tokens,
        },
        "sources": {direction: start.sources(ctx.hookpoints) for direction, start in experiment.starts.items()},
        "partition": experiment.groups.partition.groups,
        "zero_shot": {name: zero_shot[name] for name in ctx.hookpoints},
        "groups": zero_shot["groups"],
        "looks": looks,
        "budgets": experiment.once("budgets", lambda: experiment.budgets(zero_shot, looks[-1]["scores"], seconds)),
    }
    results = TransferResults(record | {"summary": TransferResults(record).summary()})
    run.write_json(RECORD, results.record)
    write_transfer_report(run)
    return results


class _Experiment:
    """The parts of one experiment, and what they share."""

    def __init__(self, ctx: RunContext, own: Settings) -> None:
        self.ctx, self.run, self.own = ctx, ctx.run, own
        self.key = _key(self.run, own)
        config = self.run.config
        device = str(ctx.source.device)
        self.base = Suite.load(self.run.path, "baseline", device=device)
        self.groups = Suite.load(self.run.path, "groups", device=device)
        self.held_out = ctx.source.held_out()
        self.settings = _settings(config.train, own.num_tokens)
        self.starts = {
            direction: WarmStart(
                self.groups if direction == "group" else self.base,
                direction,
                str(self.run.path),
                "groups" if direction == "group" else "baseline",
            )
            for direction in DIRECTIONS
        }

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A part's value: as it was kept, if it was made from the same, else made and kept now."""
        file, key = f"{FOLDER}/{name}.json", self.key
        if self.run.file(file).exists():
            kept = self.run.read_json(file)
            if kept["key"] == key:
                return kept["value"]
        value = json.loads(json.dumps(make()))
        self.run.write_json(file, {"key": key, "value": value})
        return value

    def zero_shot(self) -> dict[str, Any]:
        """Scores of each layer's SAE on every layer, by source and hookpoint, and those of the groups."""
        say("experiment: every base SAE on every layer ...")
        hookpoints = self.ctx.hookpoints
        everywhere = Partition.singletons(hookpoints)
        suites = {
            source: Suite(everywhere, dict.fromkeys(hookpoints, self.base.saes[source]), self.base.scales)
            for source in hookpoints
        }
        return self.scores(suites | {"groups": self.groups})

    def scores(self, suites: Mapping[str, Suite]) -> dict[str, Any]:
        """Reconstruction and losses of suites, by suite and hookpoint, all on the same held-out tokens."""
        num_tokens, seed = self.run.config.eval.num_tokens, self.run.config.seed
        found = evaluate_reconstructions(suites, self.held_out, num_tokens, seed=seed).suites
        spliced = evaluate_losses(suites, self.held_out, num_tokens, seed=seed).suites
        return {
            name: {layer: _record(found[name][layer], spliced[name][layer]) for layer in found[name]} for name in suites
        }

    def transfers(self) -> tuple[list[Any], dict[str, float]]:
        """The looks at all directions and the SAEs from scratch, and where the seconds of the pass went."""
        scales, hookpoints = self.base.scales, self.ctx.hookpoints
        jobs = {f"scratch.{name}": TrainJob((name,), self.settings) for name in hookpoints}
        for direction, start in self.starts.items():
            for name, each in start.starts(hookpoints, scales).items():
                jobs[f"{direction}.{name}"] = TrainJob((name,), self.settings, each)
        most, count = self.settings.num_tokens, self.own.looks
        every = -(-most // count)

        def on_eval(tokens: int, saes: dict[str, SparseAutoencoder]) -> None:
            number = tokens // every if tokens < most else count
            self.once(f"look-{number}", lambda: self.look(tokens, saes))

        seconds = self.once("transfers", lambda: self.train("transfers", jobs, EvalHook(every, on_eval)).seconds)
        return [self.once(f"look-{number}", _missing) for number in range(1, count + 1)], seconds

    def look(self, tokens: int, saes: Mapping[str, SparseAutoencoder]) -> dict[str, Any]:
        """Scores of all SAEs in training, and FVU of each direction and scratch at one L0."""
        suites = {kind: self.suite(kind, saes) for kind in (*self.starts, "scratch")}
        suites = {kind: suite for kind, suite in suites.items() if suite}
        scores = self.scores(suites)
        matched = {
            kind: {
                name: self.matched(name, suite, suites["scratch"], scores[kind], scores["scratch"])
                for name in scores[kind]
            }
            for kind, suite in suites.items()
            if kind != "scratch"
        }
        return {"tokens": tokens, "scores": scores, "matched": matched}

    def matched(self, name: str, suite: Suite, scratch: Suite, one: Any, other: Any) -> dict[str, float]:
        """FVU of a transferred SAE and the one from scratch at the smaller of their L0s, from their scores if equal."""
        l0s = sorted((one[name]["l0"], other[name]["l0"]))
        if l0s[1] <= l0s[0] * (1 + TOLERANCE):
            return {"l0": l0s[0], "transfer": one[name]["fvu"], "scratch": other[name]["fvu"]}
        num_tokens, seed = self.run.config.eval.num_tokens, self.run.config.seed
        pair = fvu_at_equal_l0(suite[name], scratch[name], self.held_out, num_tokens, seed=seed)
        return {"l0": pair.l0, "transfer": pair.first, "scratch": pair.second}

    def suite(self, kind: str, saes: Mapping[str, SparseAutoencoder]) -> Suite | None:
        """The SAEs in training of one kind; None if there are none."""
        found = {name.removeprefix(f"{kind}."): sae for name, sae in saes.items() if name.startswith(f"{kind}.")}
        return Suite(Partition.singletons(found), found, self.base.scales) if found else None

    def train(self, name: str, jobs: Mapping[str, TrainJob], looks: EvalHook | None = None) -> Trained:
        """SAEs trained side by side, with checkpoints of their own."""
        config = self.run.config
        folder = self.run.file(f"{FOLDER}/{name}")
        longest = max(each.train.num_tokens for each in jobs.values())
        checkpoints = Checkpoints(folder, f"{self.key} {' '.join(jobs)} {longest}")
        with bar(f"experiment: {len(jobs)} SAEs", longest) as advance:
            trained = train_together(
                self.ctx.source,
                jobs,
                self.base.scales,
                config.sae,
                config.train,
                seed=config.seed,
                buffer_tokens=config.activations.buffer_tokens,
                checkpoints=checkpoints,
                hooks=Hooks(progress=advance, eval=looks),
            )
        shutil.rmtree(folder)
        return trained

    def budgets(self, zero_shot: Any, last: Any, seconds: dict[str, float]) -> list[dict[str, Any]]:
        """What each way to train all layers cost and gave, two of them per layer from scratch at equal cost."""
        spending = Spending(self.ctx, self.groups.partition, self.settings.num_tokens, seconds)
        equal = spending.equal_tokens()
        jobs = {
            f"{kind}.{name}": TrainJob((name,), _settings(self.settings, tokens))
            for kind, tokens in equal.items()
            for name in self.ctx.hookpoints
        }
        trained = self.train("controls", jobs)
        controls = self.scores({kind: self.suite(kind, trained.saes) for kind in equal})
        base = {name: zero_shot[name][name] for name in self.ctx.hookpoints}
        scores = {"base": base, "groups": zero_shot["groups"], "specialized": last["group"]} | controls
        return spending.rows(equal, scores)


def _settings(train: TrainConfig, num_tokens: int) -> TrainConfig:
    """The run's settings on another number of tokens; looks are at fixed places, so none ends early."""
    return train.model_copy(update={"num_tokens": num_tokens, "stop_below": None})


def _missing() -> Any:
    raise RunError("A look of the experiment is missing. Make it again with --overwrite.")


def _key(run: RunDirectory, settings: Settings) -> str:
    """What the experiment is made of: the base SAEs' files, and the settings that are its own."""
    files = run.manifest.files("train")
    made_from = {name: facts.sha256 for name, facts in files.items() if name.startswith(("groups/", "scales"))}
    own = [asdict(settings), run.config.eval.model_dump(mode="json")]
    return digest([run.fingerprint("train"), made_from, *own])


def _record(reconstruction: Measured, loss: Measured) -> dict[str, Any]:
    """All metrics of one SAE, and their intervals."""
    one, other = reconstruction.as_record(), loss.as_record()
    return one | other | {"intervals": one["intervals"] | other["intervals"]}


if __name__ == "__main__":
    sys.exit(main())
