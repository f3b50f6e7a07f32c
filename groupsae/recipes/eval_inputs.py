"""What an evaluation compares: the suites of a run, and of another beside it, on the same held-out tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from groupsae.activations.harvest import Harvester
from groupsae.activations.source import PositionSource
from groupsae.analysis.summary import AGAINST, label_of
from groupsae.config import differing_keys
from groupsae.errors import RunError
from groupsae.evaluation.masks import MeanActivations, chosen_rows
from groupsae.progress import bar
from groupsae.recipes.context import ROWS_FILE, RunContext
from groupsae.recipes.suites import SweepMember, members_of
from groupsae.records import RunDirectory
from groupsae.saes.suite import Suite
from groupsae.text.tokens import TokenRows

Result = TypeVar("Result")

MODEL_KEYS = ("name", "revision", "dtype")


@dataclass(frozen=True)
class EvalInputs:
    """The suites that are compared, by name, and where the results go. Another run's suites are `ITS-NAME/suite`."""

    ctx: RunContext
    other: RunDirectory | None = None

    @property
    def folder(self) -> str:
        """The folder of the results, below the run's."""
        return "eval" if self.other is None else f"{AGAINST}/{self.label}"

    @property
    def label(self) -> str:
        """What the other run is called."""
        return "" if self.other is None else label_of(self.other.path)

    @property
    def beside(self) -> str:
        """What the other run's suites are, as a hash; empty without another run."""
        if self.other is None:
            return ""
        return self.other.manifest.stages["train"].files_digest

    @cached_property
    def suites(self) -> dict[str, Suite]:
        """All suites by name, this run's first."""
        device, k = str(self.ctx.source.device), self.ctx.run.config.eval.k
        found = {name: Suite.load(one.path, one.suite, device=device) for name, one in self._members.items()}
        return {name: suite.at_k(k) for name, suite in found.items()} if k else found

    @cached_property
    def _members(self) -> dict[str, SweepMember]:
        """What each suite is of its run, by name."""
        runs = [("", self.ctx.run), *([(f"{self.label}/", self.other)] if self.other else [])]
        return {prefix + name: one for prefix, run in runs for name, one in members_of(run).items()}

    @property
    def references(self) -> dict[str, str]:
        """In a sweep, the suite that each is compared with: the first of its variant. Empty without a sweep."""
        found: dict[str, str] = {}
        for name, one in self._members.items():
            if one.variant:
                found[name] = next(n for n, other in self._members.items() if other.same_variant(one))
        return found

    def are_compared(self, one: str, other: str) -> bool:
        """Whether the dictionaries of two suites are compared: of one run, those of one variant of a sweep."""
        first, second = self._members[one], self._members[other]
        return first.path != second.path or first.variant == second.variant

    def are_repeated(self, one: str, other: str) -> bool:
        """Whether it is measured what one suite finds again of another: in a sweep, of suites that differ in seed."""
        first, second = self._members[one], self._members[other]
        return first.path != second.path or not first.variant or first.same_but_seed(second)

    @cached_property
    def source(self) -> Harvester:
        """The held-out rows, read at every hookpoint that some suite serves."""
        return self.reader(self.ctx.rows.held_out)

    def reader(self, rows: TokenRows) -> Harvester:
        """Rows of this run, read at every hookpoint that some suite serves."""
        served = {hookpoint for suite in self.suites.values() for hookpoint in suite.partition.hookpoints}
        known = self.ctx.source.norm_limits
        limits = known if served <= set(known) else self.ctx.harvester(self.ctx.rows, sorted(served)).norm_limits
        return self.ctx.harvester(rows, sorted(served), limits)

    @cached_property
    def held_out(self) -> PositionSource:
        """The held-out activations for the parts that need no language model: from the run's cache, if it has them."""
        if not self.ctx.cached:
            return self.source
        held_out = self.ctx.source.held_out()
        served = {hookpoint for suite in self.suites.values() for hookpoint in suite.partition.hookpoints}
        return held_out if served <= set(held_out.hookpoints) else self.source

    def means(self, source: PositionSource) -> MeanActivations:
        """The mean activations of the evaluated rows, measured once for all parts that read this source."""
        if source not in self._means:
            rows = chosen_rows(source, self.num_tokens, self.seed)
            self._means[source] = MeanActivations(source, rows, self.ctx.ranks)
        return self._means[source]

    @cached_property
    def _means(self) -> dict[PositionSource, MeanActivations]:
        return {}

    @property
    def num_tokens(self) -> int:
        """Tokens to evaluate on."""
        return self.ctx.run.config.eval.num_tokens

    @property
    def seed(self) -> int:
        """Decides which rows they are."""
        return self.ctx.run.config.seed

    def evaluated(
        self, part: str, evaluate: Callable[..., Result], source: PositionSource, *, means: bool = False, **options: Any
    ) -> Result:
        """What `evaluate` finds for these suites on a source, with a bar.

        `means`: it takes mean activations, and ranks that share the rows.
        """
        rows = min(source.num_rows, -(-self.num_tokens // source.row_tokens))
        with bar(f"eval {part}", rows * source.row_tokens) as advance:
            options |= {"means": self.means(source), "ranks": self.ctx.ranks} if means else {}
            return evaluate(self.suites, source, self.num_tokens, seed=self.seed, progress=advance, **options)


def eval_inputs(ctx: RunContext, against: Path | None = None) -> EvalInputs:
    """The suites of a run, and of another run beside them.

    Raises RunError, before anything is loaded, for another run that is not trained, is this run
    itself, or has another model or other tokens, saying what differs.
    """
    if against is None:
        return EvalInputs(ctx)
    other = RunDirectory.open(against)
    if against.resolve() == ctx.run.path.resolve():
        raise RunError(f"{against} is this run itself; its suites are compared without --against.")
    other.require("tokens")
    _require_comparable(ctx.run, other)
    other.require("train")
    return EvalInputs(ctx, other)


def _evaluated(run: RunDirectory, key: str) -> str | None:
    """A key of the model as it is evaluated: with dtype = auto in float32."""
    value = getattr(run.config.model, key)
    return "float32" if (key, value) == ("dtype", "auto") else value


def _require_comparable(run: RunDirectory, other: RunDirectory) -> None:
    differing = [
        f"model.{key}: {mine!r} -> {its!r}"
        for key in MODEL_KEYS
        for mine, its in [(_evaluated(run, key), _evaluated(other, key))]
        if mine != its
    ]
    if differing:
        raise RunError(
            f"{run.path} and {other.path} are of different models ({'; '.join(differing)}); suites can only be "
            "compared on one model."
        )
    mine, its = (one.manifest.files("tokens")[ROWS_FILE].sha256 for one in (run, other))
    if mine != its:
        texts = differing_keys(run.config.text, other.config.text, "text.") or ["the files they were read from"]
        raise RunError(
            f"{run.path} and {other.path} have different tokens ({'; '.join(texts)}), so what one holds out the other "
            "may have trained on; make both from the same text."
        )
