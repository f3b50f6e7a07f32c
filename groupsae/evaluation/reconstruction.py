"""How well SAEs reconstruct activations they have not seen, in the model's own units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from groupsae.activations.source import PositionSource, row_clusters
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import NumericalError
from groupsae.evaluation.density import FiringCounts
from groupsae.evaluation.intervals import RowEstimate, ratio
from groupsae.evaluation.masks import MeanActivations, Scope, chosen_rows, counted, own_batches, scopes
from groupsae.evaluation.measures import Measured, numbers
from groupsae.evaluation.sites import Site, by_suite, sites
from groupsae.saes.suite import BoundSAE, Suite


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Measured):
    """How one SAE reconstructs one hookpoint. x are raw activations, x_hat their reconstruction, f the latents.

    fvu           sum ||x - x_hat||^2 / sum ||x - mean x||^2, mean over the evaluation set, in [0, inf)
    explained_variance_per_token
                  mean over tokens of 1 - ||x - x_hat||^2 / ||x - mean x||^2, in (-inf, 1]: the published one
                  (Group-SAE), but about the mean of the evaluation set, not of a batch
    cosine        mean over tokens of cos(x, x_hat), in [-1, 1]; 0 where x_hat = 0
    l0            mean number of active latents per token
    l1            mean sum of the latents per token, in the SAE's own unit, in which activations have norm 1
    l2_ratio      mean over tokens of ||x_hat|| / ||x||
    relative_reconstruction_bias
                  sum ||x_hat||^2 / sum <x, x_hat>: below 1, reconstructions are too short; 0 if all are 0, None if
                  they point away from x
    dead_share    share of the SAE's latents that fire on no evaluated token at any hookpoint it serves
    silent_share  share of the SAE's latents that fire on no evaluated token at this hookpoint
    dense_share   share of the SAE's latents that fire on more than a tenth of the tokens at this hookpoint
    density       numbers of latents by the share of tokens on which they fire here (`firing.DENSITY_EDGES`)
    """

    fvu: float
    explained_variance_per_token: float
    cosine: float
    l0: float
    l1: float
    l2_ratio: float
    relative_reconstruction_bias: float | None
    dead_share: float
    silent_share: float
    dense_share: float
    density: tuple[int, ...]


@dataclass(frozen=True)
class Reconstructions:
    """Results by suite and hookpoint, at the positions of one scope."""

    scope: Scope
    num_tokens: int
    num_rows: int
    suites: dict[str, dict[str, Reconstruction]]
    other_scope: Reconstructions | None = None
    """The same at the others' choice of positions; None where it holds no token."""


def evaluate_reconstruction(
    suite: Suite, source: PositionSource, num_tokens: int, *, seed: int = 0
) -> dict[str, Reconstruction]:
    """Each hookpoint's `Reconstruction` on about `num_tokens` tokens of a source, which should be held out."""
    return evaluate_reconstructions({"suite": suite}, source, num_tokens, seed=seed).suites["suite"]


@torch.no_grad()
def evaluate_reconstructions(
    suites: Mapping[str, Suite],
    source: PositionSource,
    num_tokens: int,
    *,
    seed: int = 0,
    means: MeanActivations | None = None,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Reconstructions:
    """The same for several suites, all on the same tokens of whole rows.

    At the source's own positions, and in `other_scope` at the others' choice of them. Sums are float64 over all
    tokens before any division, about the mean of the evaluated tokens, so results do not depend on batches. `means`
    are those of these rows; without them a first pass measures them. Several `ranks` take the batches in turn, and all
    get the same results as one process, to the bit. Raises TextError if the source holds no token,
    NumericalError if a hookpoint does not vary: FVU is then undefined.
    """
    pairs, rows = sites(suites), chosen_rows(source, num_tokens, seed)
    means = means or MeanActivations(source, rows, ranks)
    layers = {hookpoint: index for index, hookpoint in enumerate(source.hookpoints)}
    spread = _Spread(means, len(rows))
    sums = {site: _Sums(bound, len(rows)) for site, bound in pairs.items()}
    for place, batch, own in own_batches(rows.split(source.batch_rows), ranks):
        if own:
            x_LBTD, special_BT = source.read_positions(batch.tolist())
            keep_CBT = counted(source, special_BT)
            spread_CLBT = spread.add(place, x_LBTD, keep_CBT)
            for site, bound in pairs.items():
                layer = layers[site.hookpoint]
                sums[site].add(place, bound, x_LBTD[layer].float(), spread_CLBT[:, layer], keep_CBT)
        if progress:
            progress(len(batch) * source.row_tokens)
    spread.merge(ranks)
    for part in sums.values():
        part.merge(ranks)
    _require_varying(spread.variances()[0], [layers[site.hookpoint] for site in pairs], source)
    total_CLR, clusters_R = spread.total_CLR, row_clusters(source, rows)

    def results(scope: int) -> Reconstructions:
        found = {
            site: part.result(scope, total_CLR[scope, layers[site.hookpoint]], _family(sums, site), clusters_R)
            for site, part in sums.items()
        }
        return Reconstructions(scopes(source)[scope], int(means.counts[scope]), len(rows), by_suite(suites, found))

    return replace(results(0), other_scope=results(1) if means.counts[1] else None)


class _Spread:
    """Each token's squared distance from its hookpoint's mean, and the sums over rows."""

    def __init__(self, means: MeanActivations, num_rows: int) -> None:
        self._mean_CLD = means.mean_CLD
        layers = means.mean_CLD.shape[1]
        self.total_CLR = np.zeros((len(means.mean_CLD), layers, num_rows))
        """sum_t ||x_t - mean||^2 of each row."""
        self._squares_LR = np.zeros((layers, num_rows))

    def add(self, place: slice, x_LBTD: Tensor, keep_CBT: Tensor) -> Tensor:
        """Take note of the rows at this place; returns ||x - mean||^2 of every token in both scopes, (C, L, B, T)."""
        spread_CLBT = torch.stack(
            [
                torch.stack([(x.double() - m).square().sum(-1) for x, m in zip(x_LBTD, mean_LD, strict=True)])
                for mean_LD in self._mean_CLD
            ]
        )
        squares_LB = torch.stack([x.double().square().sum((-1, -2)) for x in x_LBTD])
        self._squares_LR[:, place] = squares_LB.cpu().numpy()
        self.total_CLR[..., place] = (spread_CLBT * keep_CBT[:, None]).sum(-1).cpu().numpy()
        return spread_CLBT

    def merge(self, ranks: Ranks) -> None:
        """Take what other ranks have noted of their rows."""
        self.total_CLR, self._squares_LR = ranks.add_array(self.total_CLR), ranks.add_array(self._squares_LR)

    def variances(self) -> np.ndarray:
        """The same over all rows (C, L); zero where it is no more than rounding of the mean."""
        total_CL = self.total_CLR.sum(-1)
        return np.where(total_CL > 1e-26 * self._squares_LR.sum(-1), total_CL, 0)


def _require_varying(variance_L: np.ndarray, layers: list[int], source: PositionSource) -> None:
    constant = [source.hookpoints[layer] for layer in dict.fromkeys(layers) if not variance_L[layer] > 0]
    if constant:
        raise NumericalError(
            f"The evaluated tokens are all the same at {', '.join(constant)}, so the fraction of variance unexplained "
            "is undefined; evaluate on more tokens."
        )


class _Sums:
    """Sums over each row's tokens for one SAE at one hookpoint, in both scopes, and how often latents fire."""

    NAMES = ("tokens", "error", "varying", "explained", "cosine", "l0", "l1", "l2_ratio", "length", "along")

    def __init__(self, bound: BoundSAE, num_rows: int) -> None:
        self._sums_CQR = np.zeros((2, len(self.NAMES), num_rows))
        self.firing = FiringCounts(bound.sae.d_sae, bound.sae.W_enc.device)

    def add(self, place: slice, bound: BoundSAE, x_BTD: Tensor, spread_CBT: Tensor, keep_CBT: Tensor) -> None:
        """Take note of a batch of the rows at this place: a sum over positions of each of `NAMES`, (C, Q, B)."""
        x_ND = x_BTD.flatten(0, 1)
        latents = bound.encode_sparse(x_ND)
        x_hat_BTD = bound.decode_sparse(latents).reshape(x_BTD.shape)
        values_BTK = latents.values_NK.reshape(*x_BTD.shape[:2], -1)
        self.firing.add(latents, keep_CBT.flatten(1))
        error_BT = _square(x_BTD - x_hat_BTD)
        norm_BT, length_BT = _square(x_BTD).sqrt(), _square(x_hat_BTD)
        each_QBT = torch.stack(
            [
                torch.cosine_similarity(x_BTD, x_hat_BTD, dim=-1).double(),
                (values_BTK > 0).sum(-1).double(),
                values_BTK.sum(-1).double(),
                torch.where(norm_BT > 0, length_BT.sqrt() / norm_BT, 0),
                length_BT,
                torch.einsum("btd,btd->bt", x_BTD, x_hat_BTD).double(),
            ]
        )
        varying_CBT = spread_CBT > 0
        explained_CBT = torch.where(varying_CBT, 1 - error_BT / spread_CBT, 0)
        ones_BT = torch.ones_like(error_BT)
        sums = [
            torch.stack([ones_BT, error_BT, varying.double(), explained, *each_QBT])
            for varying, explained in zip(varying_CBT, explained_CBT, strict=True)
        ]
        sums_CQB = torch.einsum("cqbt,cbt->cqb", torch.stack(sums), keep_CBT.double())
        self._sums_CQR[..., place] = sums_CQB.cpu().numpy()

    def merge(self, ranks: Ranks) -> None:
        """Take what other ranks have noted of their rows."""
        self._sums_CQR = ranks.add_array(self._sums_CQR)
        self.firing.merge(ranks)

    def result(self, scope: int, spread_R: np.ndarray, family: list[_Sums], clusters_R: np.ndarray) -> Reconstruction:
        """The metrics in a scope. `family` are the sums of the same SAE at all hookpoints it serves."""
        row = dict(zip(self.NAMES, self._sums_CQR[scope], strict=True))
        estimates: dict[str, RowEstimate] = {
            "fvu": ratio(row["error"], spread_R),
            "explained_variance_per_token": ratio(row["explained"], row["varying"]),
            **{name: ratio(row[name], row["tokens"]) for name in ("cosine", "l0", "l1", "l2_ratio")},
            "relative_reconstruction_bias": ratio(row["length"], row["along"], empty=0.0),
        }
        tokens = int(row["tokens"].sum())
        return Reconstruction(
            **numbers({name: one.clustered(clusters_R) for name, one in estimates.items()}),
            dead_share=FiringCounts.silent_share([other.firing for other in family], scope),
            silent_share=FiringCounts.silent_share([self.firing], scope),
            dense_share=self.firing.dense_share(scope, tokens),
            density=self.firing.histogram(scope, tokens),
        )


def _square(x_BTD: Tensor) -> Tensor:
    return x_BTD.square().sum(-1, dtype=torch.float64)


def _family(sums: Mapping[Site, _Sums], of: Site) -> list[_Sums]:
    return [part for site, part in sums.items() if (site.suite, site.group) == (of.suite, of.group)]
