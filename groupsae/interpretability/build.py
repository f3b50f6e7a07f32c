"""From the firings of all latents to the shards of the store, one dictionary after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from groupsae.activations.source import hash_seed
from groupsae.evaluation.sites import Site, by_suite, sites
from groupsae.interpretability import profile
from groupsae.interpretability.cofiring import most_together
from groupsae.interpretability.directions import Unembedding, directions, nearest
from groupsae.interpretability.firings import FiringFiles, Firings, SiteFirings
from groupsae.interpretability.following import following_scores
from groupsae.interpretability.intruders import intruder_scores, window_vectors
from groupsae.interpretability.selection import WindowRule, Windows, choose_windows
from groupsae.interpretability.store import has_key, write_shard
from groupsae.interpretability.surface import Surface, surface_scores
from groupsae.records.types.contexts import DictionaryRecord, ShardRecord
from groupsae.saes.suite import BoundSAE, Suite

TOKENS, PROMOTED, NEAR, OTHERS = 8, 10, 8, 4
"""How many tokens a latent fires on, tokens it promotes, neighbors, and neighbors in each other dictionary are kept."""
SHARD_LATENTS, SHARD_FIRINGS = 1024, 4 * 2**20
"""Latents of a shard, and their firings at all layers together, at most; one latent at least."""
SAMPLE_TOKENS = 65_536
"""Positions on which firing together is counted."""


@dataclass(frozen=True)
class ContextText:
    """The rows that were read: their tokens, which positions count, and each row's document."""

    ids_RT: np.ndarray
    kept_RT: np.ndarray
    cluster_R: np.ndarray


@dataclass(frozen=True)
class Dictionary:
    """One SAE at all layers of its group, and which sites of the firing files these are."""

    suite: str
    suites: tuple[str, ...]
    group: str
    bound: tuple[BoundSAE, ...]
    site_numbers: tuple[int, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Its hookpoints."""
        return tuple(one.hookpoint for one in self.bound)

    @property
    def d_sae(self) -> int:
        """Its latents."""
        return self.bound[0].sae.d_sae


def dictionaries_of(suites: Mapping[str, Suite]) -> list[Dictionary]:
    """Every SAE of the suites once, with the layers it serves."""
    pairs = sites(suites)
    numbers = {site: number for number, site in enumerate(pairs)}
    owned = by_suite(suites, {site: site for site in pairs})
    grouped: dict[tuple[str, str], list[Site]] = {}
    for site in pairs:
        grouped.setdefault((site.suite, site.group), []).append(site)
    found = []
    for (suite, group), members in grouped.items():
        sharing = tuple(name for name, layers in owned.items() if members[0] in layers.values())
        bound = tuple(pairs[site] for site in members)
        found.append(Dictionary(suite, sharing, group, bound, tuple(numbers[site] for site in members)))
    return found


class ContextBuilder:
    """Makes the shards of dictionaries from the firing files.

    `write_all` gives the records of the dictionaries; shards of this key that are on disk are kept. Every random
    choice is decided by the seed, the SAE, the layer and the shard.
    """

    def __init__(
        self,
        dictionaries: Sequence[Dictionary],
        files: FiringFiles,
        text: ContextText,
        model: nn.Module,
        rule: WindowRule,
        *,
        seed: int,
        key: str,
        root: Path,
        folder: str,
    ) -> None:
        self.dictionaries, self.files, self.text, self.rule = dictionaries, files, text, rule
        self.seed, self.key, self.root, self.folder = seed, key, root, folder
        self.unembedding = Unembedding.of(model)
        self.embedding_VD = model.get_input_embeddings().weight.detach().float()
        ids_N = torch.from_numpy(text.ids_RT[text.kept_RT].astype(np.int64)).to(self.embedding_VD.device)
        share_V = torch.bincount(ids_N, minlength=len(self.embedding_VD)).float() / max(1, len(ids_N))
        self.mean_D = share_V @ self.embedding_VD
        self.surface = Surface.of(text.ids_RT, text.kept_RT, text.cluster_R)
        self._fires: dict[int, np.ndarray] = {}

    @torch.no_grad()
    def write_all(self, progress: Callable[[int], None] = lambda latents: None) -> list[DictionaryRecord]:
        """Write every shard; `progress` is called with latents done, each counted once per dictionary."""
        return [self._write(number, progress) for number in range(len(self.dictionaries))]

    def _write(self, number: int, progress: Callable[[int], None]) -> DictionaryRecord:
        one = self.dictionaries[number]
        sources = [self.files.at(site) for site in one.site_numbers]
        counts_LS = np.stack([source.counts for source in sources])
        shards = [
            ShardRecord(file=f"{self.folder}/{number}/{low:06d}.safetensors", first=low, count=high - low)
            for low, high in _cuts(counts_LS.sum(0))
        ]
        whole: _Whole | None = None
        for shard in shards:
            path = self.root / shard.file
            if not has_key(path, self.key):
                whole = whole or self._whole(number, sources)
                write_shard(path, self._shard(number, sources, shard, whole), self.key)
            progress(shard.count)
        return DictionaryRecord(
            suite=one.suite,
            suites=one.suites,
            group=one.group,
            layers=one.layers,
            d_sae=one.d_sae,
            silent=int((counts_LS.sum(0) == 0).sum()),
            others=tuple(tuple(self._others(number, bound.hookpoint)) for bound in one.bound),
            shards=tuple(shards),
        )

    def _others(self, number: int, hookpoint: str) -> list[int]:
        return [other for other, found in enumerate(self.dictionaries) if other != number and hookpoint in found.layers]

    def _fires_anywhere(self, number: int) -> np.ndarray:
        if number not in self._fires:
            sources = [self.files.at(site) for site in self.dictionaries[number].site_numbers]
            self._fires[number] = np.stack([source.counts for source in sources]).sum(0) > 0
        return self._fires[number]

    def _whole(self, number: int, sources: Sequence[SiteFirings]) -> _Whole:
        """What needs all latents of a dictionary at once, layer by layer."""
        one, shared = self.dictionaries[number], {}
        near_id, near_cosine = self._nearest(number, number, directions(one.bound[0]))
        layers = []
        for bound, source in zip(one.bound, sources, strict=True):
            direction_SD = directions(bound)
            turned = bound.maps is not None and bound.maps.per_layer.rotation
            if turned or not shared:
                shared = self._promoted(direction_SD)
            firings = source.of(0, one.d_sae, self._sample_rows).first(self._sample_rows * self.text.ids_RT.shape[1])
            together_id, together_jaccard = most_together(firings, NEAR, self.text.kept_RT.size)
            others = [
                self._nearest(number, other, direction_SD, OTHERS, bound.hookpoint)
                for other in self._others(number, bound.hookpoint)
            ]
            near = {
                "near_id": near_id,
                "near_cosine": near_cosine,
                "together_id": together_id,
                "together_jaccard": together_jaccard,
                "other_id": _stacked([pair[0] for pair in others], one.d_sae, OTHERS, np.int32),
                "other_cosine": _stacked([pair[1] for pair in others], one.d_sae, OTHERS, np.float32),
            }
            layers.append(_Layer(direction_SD, {**shared, **near}))
        return _Whole(layers)

    @property
    def _sample_rows(self) -> int:
        return -(-SAMPLE_TOKENS // self.text.ids_RT.shape[1])

    def _nearest(
        self, number: int, other: int, direction_SD: Tensor, most: int = NEAR, hookpoint: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        found = self.dictionaries[other]
        place = found.layers.index(hookpoint) if hookpoint else 0
        fires_S = torch.from_numpy(self._fires_anywhere(other)).to(direction_SD.device)
        other_SD = directions(found.bound[place])
        index, cosine = nearest(direction_SD, other_SD, most, among_S=fires_S, same=number == other)
        return index.cpu().numpy().astype(np.int32), cosine.cpu().numpy().astype(np.float32)

    def _promoted(self, direction_SD: Tensor) -> dict[str, np.ndarray]:
        if self.unembedding is None:
            return {}
        names = ("promoted_id", "promoted_logit", "suppressed_id", "suppressed_logit")
        found = self.unembedding.strongest(direction_SD, PROMOTED)
        kinds = (np.int32, np.float32) * 2
        return {name: part.cpu().numpy().astype(kind) for name, part, kind in zip(names, found, kinds, strict=True)}

    def _shard(
        self, number: int, sources: Sequence[SiteFirings], shard: ShardRecord, whole: _Whole
    ) -> list[dict[str, np.ndarray]]:
        low, high = shard.first, shard.first + shard.count
        found = [source.of(low, high) for source in sources]
        overlap_SLL = profile.layer_overlaps(found, self.text.kept_RT.size)
        one, arrays = self.dictionaries[number], []
        for place, (firings, layer) in enumerate(zip(found, whole.layers, strict=True)):
            seed = hash_seed(self.seed, f"contexts {one.suite} {one.group} {one.layers[place]}", low)
            random = np.random.default_rng(seed)
            of_whole = {name: array[low:high] for name, array in layer.arrays.items()}
            arrays.append(
                {
                    **of_whole,
                    **self._facts(firings),
                    "overlap": overlap_SLL[:, place],
                    **self._shown(firings, layer.direction_SD[low:high], random),
                }
            )
        return arrays

    def _facts(self, firings: Firings) -> dict[str, np.ndarray]:
        token_id, token_share = profile.top_tokens(firings, self.text.ids_RT.reshape(-1), TOKENS)
        return {
            "count": firings.counts.astype(np.int64),
            "peak": profile.peaks(firings),
            "mean": profile.mean_values(firings),
            "histogram": profile.histograms(firings),
            "token_id": token_id,
            "token_share": token_share,
            "token_purity": np.where(firings.counts > 0, token_share[:, 0], np.nan).astype(np.float32),
        }

    def _shown(self, firings: Firings, direction_SD: Tensor, random: np.random.Generator) -> dict[str, np.ndarray]:
        """The windows of latents, and the scores that are made from windows and firings."""
        text = self.text
        windows = choose_windows(firings, text.kept_RT, self.rule, random)
        vectors_WD = window_vectors(windows, text.ids_RT, self.embedding_VD, self.mean_D)
        token_auroc, surface_auroc = surface_scores(firings, self.surface, random)
        following = np.full(firings.count, np.nan, dtype=np.float32)
        if self.unembedding is not None:
            following = following_scores(firings, direction_SD, self.unembedding, text.ids_RT, text.kept_RT, random)
        return {
            **_window_arrays(windows),
            "token_auroc": token_auroc,
            "surface_auroc": surface_auroc,
            "intruder": intruder_scores(windows, vectors_WD, firings.count, random),
            "following_auroc": following,
        }


@dataclass(frozen=True)
class _Layer:
    direction_SD: Tensor
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Whole:
    layers: list[_Layer]


def _window_arrays(windows: Windows) -> dict[str, np.ndarray]:
    return {
        "window_latent": windows.latent_W.astype(np.int32),
        "window_row": windows.row_W.astype(np.int32),
        "window_first": windows.first_W.astype(np.int32),
        "window_rank": windows.rank_W,
        "window_quantile": windows.quantile_W,
        "window_start": windows.start_W.astype(np.int64),
        "window_offset": windows.offset_V.astype(np.int16),
        "window_value": windows.value_V.astype(np.float32),
        "silent_latent": windows.silent_latent.astype(np.int32),
        "silent_row": windows.silent_row.astype(np.int32),
        "silent_first": windows.silent_first.astype(np.int32),
    }


def _stacked(parts: list[np.ndarray], count: int, most: int, kind: type) -> np.ndarray:
    return np.stack(parts, axis=1) if parts else np.zeros((count, 0, most), dtype=kind)


def _cuts(count_S: np.ndarray) -> list[tuple[int, int]]:
    """Where shards begin and end, for so many firings of each latent."""
    found, low, held = [], 0, 0
    for latent, count in enumerate(count_S.tolist()):
        if latent > low and (latent - low >= SHARD_LATENTS or held + count > SHARD_FIRINGS):
            found.append((low, latent))
            low, held = latent, 0
        held += count
    return [*found, (low, len(count_S))]
