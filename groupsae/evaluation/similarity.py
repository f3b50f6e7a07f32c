"""What the dictionaries of several suites share: directions, firing, layers, and what another seed finds again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from groupsae.activations.source import ActivationSource, stream
from groupsae.errors import TextError
from groupsae.evaluation.dictionaries import Matching, best_cosines, match_rows, random_mmcs
from groupsae.evaluation.firing import FiringSets, Spreading, best_jaccards, spreading
from groupsae.evaluation.sites import Site, by_suite, sites
from groupsae.partition import group_name
from groupsae.saes.base import Latents
from groupsae.saes.suite import BoundSAE, Suite

SAMPLE_TOKENS = 16_384
"""Tokens from which firing sets are made: they are held, all others are only counted."""


@dataclass(frozen=True)
class Dictionary:
    """An SAE: the first suite that has it, and its group."""

    suite: str
    group: str


@dataclass(frozen=True)
class Concordance:
    """How far the SAEs of two suites at one hookpoint fire together.

    one_in_other  mean over the latents of `one` that fire of their best Jaccard index with a latent of `other`, in
                  [0, 1]; None if none fires. (Group-SAE's AMIoU.) other_in_one is the other way round
    silent_one, silent_other  latents that fire on none of the tokens, and do not count
    """

    hookpoint: str
    one: Dictionary
    other: Dictionary
    one_in_other: float | None
    other_in_one: float | None
    silent_one: int
    silent_other: int


@dataclass(frozen=True)
class Stability:
    """How much of a group's SAE the SAE of the same group in another suite found again."""

    group: str
    one: str
    other: str
    matching: Matching


@dataclass(frozen=True)
class Similarity:
    """What dictionaries share.

    mmcs         row a, column b: mean over the rows of dictionary a of the largest |cosine| with one of b
    mmcs_random  for each column: what random directions in its place would give
    concordance  for every hookpoint and every two different SAEs that serve it, on `sample_tokens` tokens
    spreading    by suite and group, for groups of several layers, on `num_tokens` tokens
    stability    for every group that two suites have in common with different SAEs, as runs of two seeds do
    """

    num_tokens: int
    sample_tokens: int
    threshold: float
    dictionaries: tuple[Dictionary, ...]
    mmcs: tuple[tuple[float, ...], ...]
    mmcs_random: tuple[float, ...]
    concordance: tuple[Concordance, ...]
    spreading: dict[str, dict[str, Spreading]]
    stability: tuple[Stability, ...]


@torch.no_grad()
def evaluate_similarity(
    suites: Mapping[str, Suite],
    source: ActivationSource,
    num_tokens: int,
    *,
    sample_tokens: int = SAMPLE_TOKENS,
    threshold: float = 0.7,
    seed: int = 0,
    compared: Callable[[str, str], bool] | None = None,
    repeated: Callable[[str, str], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Similarity:
    """What the dictionaries of these suites share, on `num_tokens` tokens of a source.

    `compared` says of two suites whether their dictionaries are compared, `repeated` whether stability is measured
    between them; without them all are. Firing sets hold the first `sample_tokens` tokens. `progress` is called with
    tokens read. Raises TextError if the source holds no token.
    """
    pairs = sites(suites)
    firing = {site: _Firing(bound) for site, bound in pairs.items()}
    layers = {hookpoint: index for index, hookpoint in enumerate(source.hookpoints)}
    read = 0
    for x_LND in stream(source, num_tokens, seed) if source.num_rows else ():
        for site, bound in pairs.items():
            latents = bound.encode_sparse(x_LND[layers[site.hookpoint]].float())
            firing[site].add(latents, sample_tokens - read)
        read += x_LND.shape[1]
        if progress:
            progress(x_LND.shape[1])
    if not read:
        raise TextError("No held-out token is left to evaluate on; give more text or a larger held_out_share.")
    dictionaries, decoders = _dictionaries(pairs)
    return Similarity(
        num_tokens=read,
        sample_tokens=min(read, sample_tokens),
        threshold=threshold,
        dictionaries=dictionaries,
        mmcs=_mmcs_matrix(dictionaries, decoders, compared or _always),
        mmcs_random=tuple(random_mmcs(*decoder_SD.shape) for decoder_SD in decoders),
        concordance=tuple(_concordances(firing, compared or _always)),
        spreading=_spreadings(suites, firing),
        stability=tuple(_stabilities(suites, threshold, repeated or _always)),
    )


def _always(one: str, other: str) -> bool:
    return True


class _Firing:
    """How often each latent fired, and the sets of tokens on which it did, for the first of them."""

    def __init__(self, bound: BoundSAE) -> None:
        self.counts_S = torch.zeros(bound.sae.d_sae, dtype=torch.long, device=bound.sae.W_dec.device)
        self.sets = FiringSets(bound.sae.d_sae)

    def add(self, latents: Latents, room: int) -> None:
        fired_NK = latents.values_NK > 0
        self.counts_S += torch.bincount(latents.indices_NK[fired_NK], minlength=len(self.counts_S))
        if room > 0:
            self.sets.add(Latents(latents.values_NK[:room], latents.indices_NK[:room]))


def _dictionaries(pairs: Mapping[Site, BoundSAE]) -> tuple[tuple[Dictionary, ...], list[Tensor]]:
    decoders = {Dictionary(site.suite, site.group): bound.sae.W_dec for site, bound in pairs.items()}
    return tuple(decoders), list(decoders.values())


def _mmcs_matrix(
    names: Sequence[Dictionary], decoders: Sequence[Tensor], compared: Callable[[str, str], bool]
) -> tuple[tuple[float | None, ...], ...]:
    """The MMCS of every dictionary with every other that it is compared with; both ways come from one product."""
    matrix: list[list[float | None]] = [[None] * len(decoders) for _ in decoders]
    for a, one_SD in enumerate(decoders):
        for b in range(a, len(decoders)):
            if not compared(names[a].suite, names[b].suite):
                continue
            best_S, best_of_other_S = best_cosines(one_SD, decoders[b])
            matrix[a][b], matrix[b][a] = best_S.mean().item(), best_of_other_S.mean().item()
    return tuple(map(tuple, matrix))


def _concordances(firing: Mapping[Site, _Firing], compared: Callable[[str, str], bool]) -> Iterator[Concordance]:
    by_hookpoint: dict[str, list[Site]] = {}
    for site in firing:
        by_hookpoint.setdefault(site.hookpoint, []).append(site)
    for hookpoint, served in by_hookpoint.items():
        sets = {site: firing[site].sets.matrix() for site in served} if len(served) > 1 else {}
        for one, other in (pair for pair in combinations(sets, 2) if compared(pair[0].suite, pair[1].suite)):
            yield _concordance(hookpoint, one, other, sets[one], sets[other])


def _concordance(
    hookpoint: str, one: Site, other: Site, one_SN: sparse.csr_array, other_SN: sparse.csr_array
) -> Concordance:
    best_S, best_of_other_S = best_jaccards(one_SN, other_SN)
    silent = [int(np.isnan(best).sum()) for best in (best_S, best_of_other_S)]
    means = [
        float(np.nanmean(best)) if count < len(best) else None
        for best, count in zip((best_S, best_of_other_S), silent, strict=True)
    ]
    return Concordance(hookpoint, Dictionary(*one[:2]), Dictionary(*other[:2]), *means, *silent)


def _spreadings(suites: Mapping[str, Suite], firing: Mapping[Site, _Firing]) -> dict[str, dict[str, Spreading]]:
    found: dict[str, dict[str, Spreading]] = {}
    for name, parts in by_suite(suites, firing).items():
        for group in suites[name].partition.groups:
            if len(group) > 1:
                counts_LS = torch.stack([parts[hookpoint].counts_S for hookpoint in group])
                found.setdefault(name, {})[group_name(group)] = spreading(counts_LS, group)
    return found


def _stabilities(
    suites: Mapping[str, Suite], threshold: float, repeated: Callable[[str, str], bool]
) -> Iterator[Stability]:
    for (one, first), (other, second) in combinations(suites.items(), 2):
        if not repeated(one, other):
            continue
        for group in first.partition.groups:
            if group not in second.partition.groups:
                continue
            decoders = [suite.saes[group_name(group)].W_dec for suite in (first, second)]
            if not torch.equal(*decoders):
                yield Stability(group_name(group), one, other, match_rows(*decoders, threshold))
