"""What splicing SAEs into the model costs the model: its loss, and how far its predictions move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.harvest import Harvester
from groupsae.activations.source import row_clusters
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.evaluation.intervals import RowEstimate, ratio
from groupsae.evaluation.masks import MeanActivations, Scope, chosen_rows, counted, nothing_left, own_batches, scopes
from groupsae.evaluation.measures import Measured, numbers
from groupsae.evaluation.predictions import CleanPredictions
from groupsae.evaluation.sites import by_suite, sites
from groupsae.evaluation.splice import Change, CleanPass
from groupsae.model_structure import require_causal, text_config
from groupsae.saes.suite import BoundSAE, Suite

LOGITS_AT_ONCE = 4 * 2**20
"""Logits held at once (16 MiB): larger fresh tensors are slow on CPUs, and gain nothing on GPUs."""


@dataclass(frozen=True, kw_only=True)
class SplicedLoss(Measured):
    """The model with reconstructions spliced in, at one hookpoint or at all of a suite's.

    SplicedLosses are means over tokens, in nats per token. `zero` and `mean` are the model with the same
    hookpoints set to zero, or to their mean activation, at every position.

    ce              cross-entropy of the next token
    delta_ce        ce - ce_clean
    kl              KL(clean || spliced), >= 0
    ce_score        (ce_zero - ce) / (ce_zero - ce_clean): 1 is lossless, 0 as bad as the ablation; None if the
                    ablation does no harm
    kl_score        (kl_zero - kl) / kl_zero, likewise
    ce_score_mean   (ce_mean - ce) / (ce_mean - ce_clean), likewise
    kl_score_mean   (kl_mean - kl) / kl_mean, likewise
    """

    ce: float
    delta_ce: float
    kl: float
    ce_score: float | None
    kl_score: float | None
    ce_score_mean: float | None
    kl_score_mean: float | None


@dataclass(frozen=True)
class Ablation:
    """The model with a hookpoint, or all of a suite's, set to zero or to their mean: (CE, KL) in nats per token."""

    ce_zero: float
    kl_zero: float
    ce_mean: float
    kl_mean: float


@dataclass(frozen=True)
class SplicedLosses:
    """SplicedLosses at the positions of one scope.

    `suites` and `ablated` are by hookpoint, one spliced at a time; `all_layers` and
    `all_layers_ablated` have all of a suite's hookpoints spliced at once.
    """

    scope: Scope
    num_tokens: int
    num_rows: int
    ce_clean: float
    ablated: dict[str, Ablation]
    suites: dict[str, dict[str, SplicedLoss]]
    all_layers: dict[str, SplicedLoss]
    all_layers_ablated: dict[str, Ablation]
    other_scope: SplicedLosses | None = None
    """The same at the others' choice of positions; None where it holds no token."""

    @property
    def ce_zero(self) -> dict[str, float]:
        """The loss under zero ablation by hookpoint."""
        return {hookpoint: one.ce_zero for hookpoint, one in self.ablated.items()}


@torch.no_grad()
def evaluate_losses(
    suites: Mapping[str, Suite],
    source: Harvester,
    num_tokens: int,
    *,
    seed: int = 0,
    means: MeanActivations | None = None,
    alone: Collection[str] | None = None,
    both_scopes: bool = True,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks = ALONE,
) -> SplicedLosses:
    """Losses with SAEs spliced in, one hookpoint at a time and all at once, on about `num_tokens` tokens in whole rows.

    At the source's own positions, and in `other_scope` at the others' choice of them. A scope's
    reconstructions stand at its positions, ablations at every position; with all hookpoints spliced,
    each SAE sees what the model computes under the splices below it. Cross-entropies are means over
    the scope's positions that have a next token (`num_tokens`), KL divergences over all of its
    positions; both are summed in float64. All suites see the same tokens. `means` are those of these
    rows, if they were measured before. Each hookpoint spliced alone costs about half a forward pass: `alone` names
    those to measure, by default all. Without `both_scopes` only the source's own is measured. Several `ranks` take the
    batches in turn, and all get the same results as one process, to the bit. Raises ModelError, before anything is
    computed, for a model whose predictions depend on later tokens.
    """
    rows = _special_first(source, chosen_rows(source, num_tokens, seed))
    require_causal(source.model, source.rows[rows[:1].tolist()].to(source.device), "The loss of the next token")
    means = means or MeanActivations(source, rows, ranks)
    bench = _Bench(suites, source, means, row_clusters(source, rows), alone, both_scopes)
    for place, batch, own in own_batches(_batches(source, rows), ranks):
        if own:
            bench.measure(source.rows[batch.tolist()].to(source.device), place)
        if progress:
            progress(len(batch) * source.row_tokens)
    bench.merge(ranks)
    if not bench.tokens_R(0).sum():
        raise nothing_left()
    scope, other = scopes(source)
    beside = bench.result(1, other) if both_scopes and bench.tokens_R(1).sum() else None
    return replace(bench.result(0, scope), other_scope=beside)


def _special_first(source: Harvester, rows: Tensor) -> Tensor:
    """Rows with special tokens stand together: only their batches must be spliced once for each scope."""
    special_R = ~source.rows.keep(source.rows[rows.tolist()]).all(1)
    return torch.cat([rows[special_R], rows[~special_R]])


def _batches(source: Harvester, rows: Tensor) -> Sequence[Tensor]:
    vocabulary = getattr(text_config(source.model), "vocab_size", 1)
    batch_rows = max(1, min(source.batch_rows, LOGITS_AT_ONCE // (source.row_tokens * vocabulary)))
    return rows.split(batch_rows)


class _Bench:
    """Splices everything that is measured into each batch, and keeps each row's sums in both scopes."""

    def __init__(
        self,
        suites: Mapping[str, Suite],
        source: Harvester,
        means: MeanActivations,
        clusters_R: np.ndarray,
        alone: Collection[str] | None,
        both_scopes: bool,
    ) -> None:
        self._suites, self._source, self._both_scopes = suites, source, both_scopes
        wanted = set(source.hookpoints if alone is None else alone)
        self._subjects = {site: bound for site, bound in sites(suites).items() if site.hookpoint in wanted}
        served = {site.hookpoint for site in self._subjects}
        self._hookpoints = [hookpoint for hookpoint in source.hookpoints if hookpoint in served]
        self._mean_D = dict(zip(source.hookpoints, means.mean_CLD[0].float(), strict=True))
        # One array per key from the start: small ones, batch by batch, would split the memory of freed logits.
        self._sums: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros((4, len(clusters_R))))
        self._clusters_R = clusters_R

    def measure(self, ids_BT: Tensor, place: slice) -> None:
        """Take note of a batch of the rows at this place."""
        clean = CleanPass(self._source.model, ids_BT, self._source.hookpoints)
        keep_CBT = self._counted(ids_BT, clean)
        batch = _Batch(CleanPredictions(clean.logits_BTV, ids_BT), keep_CBT, self._sums, place, self._both_scopes)
        batch.note("clean", clean.logits_BTV)
        for hookpoints in self._ablated():
            for kind, change in (("zero", torch.zeros_like), ("mean", None)):
                changes = {one: change or _constant(self._mean_D[one]) for one in hookpoints}
                batch.note((kind, hookpoints), clean.spliced_together(changes))
        for site, bound in self._subjects.items():
            hidden_BTD = clean.hidden[site.hookpoint]
            x_hat_BTD = bound(hidden_BTD)
            for scopes_, keep_BT in batch.splices:
                x_BTD = torch.where(keep_BT[..., None], x_hat_BTD, hidden_BTD)
                batch.note(site, clean.spliced(site.hookpoint, x_BTD), scopes_)
        for name, suite in self._suites.items():
            for scopes_, keep_BT in batch.splices:
                changes = {one: _reconstruction(suite[one], keep_BT) for one in suite.partition.hookpoints}
                batch.note(("all", name), clean.spliced_together(changes), scopes_)

    def merge(self, ranks: Ranks) -> None:
        """Take what other ranks have noted of their rows."""
        for hookpoints in self._ablated():
            for kind in ("zero", "mean"):
                self._merge((kind, hookpoints), ranks)
        for key in ("clean", *self._subjects, *(("all", name) for name in self._suites)):
            self._merge(key, ranks)

    def _merge(self, key: Hashable, ranks: Ranks) -> None:
        for scope in (0, 1):
            self._sums[key, scope] = ranks.add_array(self._sums[key, scope])

    def _counted(self, ids_BT: Tensor, clean: CleanPass) -> Tensor:
        """keep_CBT: the positions that count in each scope, those with NaN or infinity in the clean pass in none."""
        hidden = [clean.hidden[hookpoint] for hookpoint in self._source.hookpoints]
        finite_BT = torch.stack([torch.isfinite(x_BTD).all(-1) for x_BTD in (*hidden, clean.logits_BTV)]).all(0)
        return counted(self._source, self._source.left_out(ids_BT, hidden)) & finite_BT

    def _ablated(self) -> list[tuple[str, ...]]:
        """What is ablated: every hookpoint, and all of each suite's at once."""
        together = [suite.partition.hookpoints for suite in self._suites.values()]
        return list(dict.fromkeys([*((one,) for one in self._hookpoints), *together]))

    def tokens_R(self, scope: int) -> np.ndarray:
        """The tokens of each row that count in a scope."""
        return self._rows("clean", scope)[0]

    def _rows(self, key: Hashable, scope: int) -> np.ndarray:
        """(tokens with a next one, sum of CE, tokens, sum of KL) of each row, (4, R)."""
        return self._sums[key, scope]

    def result(self, scope: int, name: Scope) -> SplicedLosses:
        """Everything that was measured, in a scope."""
        alone = {hookpoint: (hookpoint,) for hookpoint in self._hookpoints}
        together = {name: suite.partition.hookpoints for name, suite in self._suites.items()}
        spliced = {site: self._loss(site, alone[site.hookpoint], scope) for site in self._subjects}
        tokens_R, ce_R, *_ = self._rows("clean", scope)
        return SplicedLosses(
            scope=name,
            num_tokens=int(tokens_R.sum()),
            num_rows=len(tokens_R),
            ce_clean=float(ce_R.sum() / tokens_R.sum()),
            ablated={hookpoint: self._ablation(key, scope) for hookpoint, key in alone.items()},
            suites=by_suite(self._suites, spliced),
            all_layers={name: self._loss(("all", name), key, scope) for name, key in together.items()},
            all_layers_ablated={name: self._ablation(key, scope) for name, key in together.items()},
        )

    def _ablation(self, hookpoints: tuple[str, ...], scope: int) -> Ablation:
        values = []
        for kind in ("zero", "mean"):
            tokens_R, ce_R, positions_R, kl_R = self._rows((kind, hookpoints), scope)
            values += [float(ce_R.sum() / tokens_R.sum()), float(kl_R.sum() / positions_R.sum())]
        return Ablation(*values)

    def _loss(self, key: Hashable, hookpoints: tuple[str, ...], scope: int) -> SplicedLoss:
        tokens_R, ce_R, positions_R, kl_R = self._rows(key, scope)
        clean_R = self._rows("clean", scope)[1]
        estimates: dict[str, RowEstimate] = {
            "ce": ratio(ce_R, tokens_R),
            "delta_ce": ratio(ce_R - clean_R, tokens_R),
            "kl": ratio(kl_R, positions_R),
        }
        for kind, suffix in (("zero", ""), ("mean", "_mean")):
            _, ablated_R, _, moved_R = self._rows((kind, hookpoints), scope)
            estimates[f"ce_score{suffix}"] = ratio(ablated_R - ce_R, ablated_R - clean_R)
            estimates[f"kl_score{suffix}"] = ratio(moved_R - kl_R, moved_R)
        clustered = {name: one.clustered(self._clusters_R) for name, one in estimates.items()}
        return SplicedLoss(**_not_negative(numbers(clustered), "kl"))


class _Batch:
    """One batch of rows: the clean predictions, and where reconstructions are spliced in for each scope."""

    def __init__(
        self,
        predictions: CleanPredictions,
        keep_CBT: Tensor,
        sums: dict[Hashable, np.ndarray],
        place: slice,
        both_scopes: bool,
    ) -> None:
        self._predictions, self._sums, self._place, self._keep_CBT = predictions, sums, place, keep_CBT.double()
        self.splices: list[tuple[tuple[int, ...], Tensor]]
        if not both_scopes or torch.equal(keep_CBT[0], keep_CBT[1]):
            self.splices = [((0, 1), keep_CBT[0])]
        else:
            self.splices = [((0,), keep_CBT[0]), ((1,), keep_CBT[1])]

    def note(self, key: Hashable, logits_BTV: Tensor, scopes_: tuple[int, ...] = (0, 1)) -> None:
        """Add each row's sums to what is known under this key, in these scopes."""
        ce_BT, kl_BT = self._predictions(logits_BTV)
        for scope in scopes_:
            keep_BT = self._keep_CBT[scope]
            ce_BT_, kl_BT_ = ce_BT.where(keep_BT[:, :-1] > 0, 0.0), kl_BT.where(keep_BT > 0, 0.0)  # NaN * 0 is NaN
            sums_4B = [part.sum(-1) for part in (keep_BT[:, :-1], ce_BT_, keep_BT, kl_BT_)]
            self._sums[key, scope][:, self._place] = torch.stack(sums_4B).cpu().numpy()


def _not_negative(found: dict[str, Any], name: str) -> dict[str, Any]:
    """A metric that rounding, or the width of its interval, took below 0, put there."""
    intervals = {
        key: (max(0.0, low), high) if key == name else (low, high) for key, (low, high) in found["intervals"].items()
    }
    return found | {name: max(0.0, found[name]), "intervals": intervals}


def _constant(mean_D: Tensor) -> Change:
    return lambda x_BTD: mean_D.expand_as(x_BTD).clone()  # the model may write into it


def _reconstruction(bound: BoundSAE, keep_BT: Tensor) -> Change:
    return lambda x_BTD: torch.where(keep_BT[..., None], bound(x_BTD), x_BTD)
