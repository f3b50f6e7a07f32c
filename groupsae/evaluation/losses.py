"""What splicing an SAE into the model costs the model: its loss, and how far its predictions move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from groupsae.activations.harvest import Harvester
from groupsae.activations.source import row_order
from groupsae.errors import TextError
from groupsae.evaluation.splice import CleanPass, zeros_at
from groupsae.evaluation.subjects import by_suite, subjects
from groupsae.saes.suite import BoundSAE, Suite

LOGITS_AT_ONCE = 4 * 2**20
"""Logits held at once (16 MiB): larger fresh tensors are slow on CPUs, and gain nothing on GPUs."""


@dataclass(frozen=True)
class SplicedLoss:
    """The model with one SAE spliced in at one hookpoint, in nats per token.

    ce        cross-entropy of the next token with the SAE spliced in
    delta_ce  ce - ce_clean
    ce_score  (ce_zero - ce) / (ce_zero - ce_clean): 1 is lossless, 0 is as bad as zero ablation; None if
              zero ablation does no harm
    kl        KL(clean || spliced), mean over tokens, >= 0
    """

    ce: float
    delta_ce: float
    ce_score: float | None
    kl: float


@dataclass(frozen=True)
class Losses:
    """The clean loss, each hookpoint's loss under zero ablation, and `SplicedLoss` by suite and hookpoint."""

    num_tokens: int
    ce_clean: float
    ce_zero: dict[str, float]
    suites: dict[str, dict[str, SplicedLoss]]


UNITS = {"ce": "nats per token", "delta_ce": "nats per token", "ce_score": "ratio", "kl": "nats per token"}


@torch.no_grad()
def evaluate_losses(
    suites: Mapping[str, Suite],
    source: Harvester,
    num_tokens: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Losses:
    """Losses with each SAE spliced in, one hookpoint at a time, on about `num_tokens` tokens in whole rows.

    The SAE's reconstruction stands at every position the source keeps; zero ablation at every
    position. Losses are means over the kept positions that have a next token, summed in float64.
    All suites see the same tokens.
    """
    pairs = subjects(suites)
    hookpoints = sorted({subject.hookpoint for subject in pairs}, key=source.hookpoints.index)
    total = _Totals()
    for ids_BT in _batches(source, num_tokens, seed):
        clean = CleanPass(source.model, ids_BT, hookpoints)
        keep_BT = source.rows.keep(ids_BT) if source.skip_special else torch.ones_like(ids_BT, dtype=torch.bool)
        measure = _Measure(clean.logits_BTV, ids_BT, keep_BT)
        total.add("clean", measure(clean.logits_BTV), measure.count)
        for hookpoint in hookpoints:
            total.add(("zero", hookpoint), measure(clean.spliced(hookpoint, zeros_at(clean, hookpoint))))
        for subject, bound in pairs.items():
            x_BTD = _reconstruct(bound, clean.hidden[subject.hookpoint], keep_BT)
            total.add(subject, measure(clean.spliced(subject.hookpoint, x_BTD)))
        if progress:
            progress(ids_BT.numel())
    if not total.count:
        raise TextError("No held-out token is left to evaluate on; give more text or a larger held_out_share.")
    ce_clean = total.mean("clean")[0]
    ce_zero = {hookpoint: total.mean(("zero", hookpoint))[0] for hookpoint in hookpoints}
    results = {subject: _spliced_loss(total.mean(subject), ce_clean, ce_zero[subject.hookpoint]) for subject in pairs}
    return Losses(total.count, ce_clean, ce_zero, by_suite(suites, results))


def _batches(source: Harvester, num_tokens: int, seed: int) -> Iterator[Tensor]:
    length = source.rows.context_length
    config = getattr(source.model, "config", None)
    vocabulary = config.get_text_config().vocab_size if config is not None else 1
    batch_rows = max(1, min(source.batch_rows, LOGITS_AT_ONCE // (length * vocabulary)))
    chosen = row_order(source.num_rows, seed, 0)[: -(-num_tokens // length)]
    for rows in chosen.split(batch_rows) if len(chosen) else ():
        yield source.rows[rows.tolist()].to(source.device)


def _reconstruct(bound: BoundSAE, x_BTD: Tensor, keep_BT: Tensor) -> Tensor:
    spliced_BTD = x_BTD.clone()
    spliced_BTD[keep_BT] = bound(x_BTD[keep_BT])
    return spliced_BTD


class _Measure:
    """Sums of next-token loss and of KL from the clean predictions, over the kept positions of a batch.

    With y the logits, lse the log of their summed exponentials, c the clean ones and p = softmax(c):
    CE = lse(y) - y[next], KL(p || softmax(y)) = <p, c - y> + lse(y) - lse(c), differences of near numbers first.
    """

    def __init__(self, clean_BTV: Tensor, ids_BT: Tensor, keep_BT: Tensor) -> None:
        self._keep = keep_BT[:, :-1]
        self._next_BT = ids_BT[:, 1:, None]
        self._clean_BTV = clean_BTV[:, :-1].float()
        self._clean_lse_BT = self._clean_BTV.logsumexp(-1)
        self._p_BTV = self._clean_BTV.softmax(-1)
        self.count = int(self._keep.sum())

    def __call__(self, logits_BTV: Tensor) -> Tensor:
        """(sum of CE, sum of KL), float64."""
        y_BTV = logits_BTV[:, :-1].float()
        lse_BT = y_BTV.logsumexp(-1)
        ce_BT = lse_BT - y_BTV.gather(-1, self._next_BT).squeeze(-1)
        moved_BT = torch.einsum("btv,btv->bt", self._p_BTV, self._clean_BTV - y_BTV)
        kl_BT = moved_BT + lse_BT - self._clean_lse_BT
        return torch.stack([part[self._keep].sum(dtype=torch.float64) for part in (ce_BT, kl_BT)])


class _Totals:
    """Sums by key over all batches."""

    def __init__(self) -> None:
        self._sums: dict[object, Tensor] = {}
        self.count = 0

    def add(self, key: object, sums: Tensor, count: int = 0) -> None:
        self._sums[key] = self._sums.get(key, 0) + sums
        self.count += count

    def mean(self, key: object) -> tuple[float, float]:
        ce, kl = (self._sums[key] / self.count).tolist()
        return ce, kl


def _spliced_loss(means: tuple[float, float], ce_clean: float, ce_zero: float) -> SplicedLoss:
    ce, kl = means
    harm = ce_zero - ce_clean
    return SplicedLoss(ce, ce - ce_clean, (ce_zero - ce) / harm if harm > 0 else None, max(0.0, kl))
