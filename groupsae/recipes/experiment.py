"""The transfer experiment: what starting from another layer's SAE, or from a group's, saves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from groupsae.config import TrainConfig
from groupsae.errors import ConfigError, RunError
from groupsae.evaluation.losses import evaluate_losses
from groupsae.evaluation.matched import TOLERANCE, fvu_at_equal_l0
from groupsae.evaluation.measures import Measured
from groupsae.evaluation.reconstruction import evaluate_reconstructions
from groupsae.partition import Partition
from groupsae.progress import bar, say
from groupsae.recipes.budgets import Spending
from groupsae.recipes.context import RunContext
from groupsae.records import RunDirectory
from groupsae.report.transfer import DIRECTIONS, RECORD, TransferResults
from groupsae.report.transfer_page import write_transfer_report
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.suite import Suite
from groupsae.storage import digest
from groupsae.training.checkpoint import Checkpoints
from groupsae.training.hooks import EvalHook, Hooks
from groupsae.training.trainer import Trained, TrainJob, train_together
from groupsae.training.warm_start import WarmStart

FOLDER = "experiment"


def require_experiment(run: RunDirectory, *, overwrite: bool) -> bool:
    """Whether there is anything to do. Raises ConfigError for a run without a baseline or with a warm start,
    RunError if results of another config would be replaced without `overwrite`.
    """
    train = run.config.train
    if not train.baseline or train.warm_start.source:
        raise ConfigError(
            "The transfer experiment trains its base SAEs itself, one per layer: set train.baseline = true and "
            "leave out train.warm_start.source."
        )
    own = run.config.experiment
    if _transfer_tokens(run) < own.looks * train.batch_tokens:
        raise ConfigError(
            f"{own.looks} looks at {_transfer_tokens(run):,} tokens need batches smaller than train.batch_tokens = "
            f"{train.batch_tokens}; raise experiment.num_tokens or lower experiment.looks."
        )
    if overwrite or not run.file(RECORD).exists():
        return True
    if run.status("train") == "done" and run.read_json(RECORD)["key"] == _key(run):
        return False
    raise RunError(f"{run.file(RECORD)} was made from another config. Replace it with --overwrite, or give --out.")


def transfer_experiment(ctx: RunContext) -> TransferResults:
    """The whole experiment on a run whose train stage is done: `experiment/transfer.json`, `report/transfer.html`.

    Three parts, each kept when it is done: every base SAE on every layer; SAEs started forward, backward and
    from their group, with those from scratch beside them in one pass, looked at in equal steps; per-layer
    SAEs from scratch for what the groups and their specialization cost together.
    """
    run = ctx.run
    experiment = _Experiment(ctx)
    zero_shot = experiment.once("zero-shot", experiment.zero_shot)
    looks, seconds = experiment.transfers()
    record = {
        "key": _key(run),
        "hookpoints": ctx.hookpoints,
        "num_tokens": {
            "base": run.config.train.num_tokens,
            "transfer": experiment.settings.num_tokens,
            "eval": run.config.eval.num_tokens,
        },
        "sources": {direction: start.sources(ctx.hookpoints) for direction, start in experiment.starts.items()},
        "partition": experiment.groups.partition.groups,
        "zero_shot": {name: zero_shot[name] for name in ctx.hookpoints},
        "groups": zero_shot["groups"],
        "looks": looks,
        "budgets": experiment.once("budgets", lambda: experiment.budgets(zero_shot, looks[-1]["scores"], seconds)),
    }
    results = TransferResults(record)
    run.write_json(RECORD, record | {"summary": results.summary()})
    write_transfer_report(run)
    return results


class _Experiment:
    """The parts of one experiment, and what they share."""

    def __init__(self, ctx: RunContext) -> None:
        self.ctx, self.run = ctx, ctx.run
        config = self.run.config
        device = str(ctx.source.device)
        self.base = Suite.load(self.run.path, "baseline", device=device)
        self.groups = Suite.load(self.run.path, "groups", device=device)
        self.held_out = ctx.source.held_out()
        self.settings = _settings(config.train, _transfer_tokens(self.run))
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
        file, key = f"{FOLDER}/{name}.json", _key(self.run)
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
        most, count = self.settings.num_tokens, self.run.config.experiment.looks
        every = -(-most // count)

        def see(tokens: int, saes: dict[str, SparseAutoencoder]) -> None:
            number = tokens // every if tokens < most else count
            self.once(f"look-{number}", lambda: self.look(tokens, saes))

        seconds = self.once("transfers", lambda: self.train("transfers", jobs, EvalHook(every, see)).seconds)
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
        """Trainees side by side, with checkpoints of their own."""
        config = self.run.config
        folder = self.run.file(f"{FOLDER}/{name}")
        longest = max(each.train.num_tokens for each in jobs.values())
        checkpoints = Checkpoints(folder, f"{_key(self.run)} {' '.join(jobs)} {longest}")
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


def _transfer_tokens(run: RunDirectory) -> int:
    return run.config.experiment.num_tokens or run.config.train.num_tokens // 2


def _missing() -> Any:
    raise RunError("A look of the experiment is missing. Make it again with --overwrite.")


def _key(run: RunDirectory) -> str:
    """What the experiment is made of: the base SAEs' files, and the settings that are its own."""
    files = run.manifest["stages"].get("train", {}).get("files", {})
    made_from = {name: facts["sha256"] for name, facts in files.items() if name.startswith(("groups/", "scales"))}
    own = [run.config.experiment.model_dump(mode="json"), run.config.eval.model_dump(mode="json")]
    return digest([run.fingerprint("train"), made_from, *own])


def _record(reconstruction: Measured, loss: Measured) -> dict[str, Any]:
    """All metrics of one SAE, and their intervals."""
    one, other = reconstruction.as_record(), loss.as_record()
    return one | other | {"intervals": one["intervals"] | other["intervals"]}
