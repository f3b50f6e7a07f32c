"""Initial weights from trained SAEs: of the layer before, the layer after, or the one that serves a layer already."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from groupsae.config import Direction, SAEConfig, TrainConfig, differing_keys
from groupsae.errors import ConfigError, PartitionError
from groupsae.hookpoints import natural_key
from groupsae.partition import Group, group_name
from groupsae.records.types.lineage import Origin
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite
from groupsae.training.optim import learning_rate

RATE_SHARE = 1 / 3
"""A warm-started SAE's learning rate, in rates of one from scratch. Source: 1e-5 against 3e-5 in the paper on
layer-wise transfer (Ghilardi et al., BlackboxNLP 2024)."""
_STEPS = {"forward": -1, "backward": 1, "group": 0}
ROUNDING = 1e-3
"""Of the norm of a decoder row: training divides by it after every step."""
_COMPARING = ("topk", "batchtopk", "matryoshka")
"""Architectures that compare latents with each other, so that their units cannot be changed one by one."""
_WIDTH = {"expansion", "d_sae"}


@dataclass(frozen=True)
class InitialWeights:
    """The weights that one SAE starts from, in the units of the hookpoint it will serve, and whose they were."""

    sae: SparseAutoencoder
    origin: Origin


@dataclass(frozen=True)
class WarmStart:
    """A suite to start from, and which of its SAEs a hookpoint takes.

    `forward`: that of the hookpoint before; `backward`: of the one after; `group`: of the hookpoint
    itself, which in a suite of groups is its group's. Before and after are meant among the hookpoints of
    the suite and of the training, in natural order. The first hookpoint forward and the last backward
    have none, and are trained from scratch. `run` and `name` say where the suite lies, for the record.

    An SAE keeps its function of the normalized activations z = s (x - c), s and c being those of the
    hookpoint it moves to. Where the suite itself knows that hookpoint, its own s and c count, and the SAE is
    then put into the units of the new training without changing what it does to raw activations.
    """

    suite: Suite
    direction: Direction = "backward"
    run: str | None = None
    name: str | None = None

    def sources(self, hookpoints: Iterable[str]) -> dict[str, str | None]:
        """For each hookpoint the one whose SAE it starts from; None where there is nothing to start from.

        Raises PartitionError if the suite does not serve one that is needed.
        """
        served = self.suite.partition.hookpoints
        known = sorted({*served, *hookpoints}, key=natural_key)
        found: dict[str, str | None] = {}
        for hookpoint in hookpoints:
            place = known.index(hookpoint) + _STEPS[self.direction]
            found[hookpoint] = known[place] if 0 <= place < len(known) else None
        missing = {source: hookpoint for hookpoint, source in found.items() if source and source not in served}
        if missing:
            needs = ", ".join(f"{source} (for {hookpoint})" for source, hookpoint in missing.items())
            raise PartitionError(
                f"{self._where} has no SAE of {needs}; it serves {', '.join(served)}. Choose another direction than "
                f"{self.direction!r}, another source, or other hookpoints."
            )
        return found

    def require_possible(self, groups: Sequence[Group], d_model: int, sae: SAEConfig, train: TrainConfig) -> list[str]:
        """The settings of the source's SAEs that differ without changing what an SAE is, as `sae.k: 16 -> 32`.

        Raises ConfigError naming what differs in width, architecture or, at a hookpoint whose center the source
        does not know, in whether there is one; PartitionError for groups of several hookpoints or a hookpoint
        that the source lacks.
        """
        shared = [group_name(group) for group in groups if len(group) > 1]
        if shared:
            raise PartitionError(
                f"{', '.join(shared)}: a warm start trains one SAE per layer; give Partition.singletons(hookpoints)."
            )
        sources = {name for name in self.sources([group[0] for group in groups]).values() if name}
        faults: dict[str, None] = {}
        others: dict[str, None] = {}
        for name in sorted(sources, key=natural_key):
            differing = _differences(self.suite[name].sae, d_model, sae)
            faults |= dict.fromkeys(differing[0])
            others |= dict.fromkeys(differing[1])
        centered = bool(self.suite.scales.center_LD.any())
        if centered != train.center and {group[0] for group in groups} - set(self.suite.scales.hookpoints):
            faults[f"train.center: {centered} -> {train.center}"] = None
        if faults:
            raise ConfigError(
                f"The SAEs of {self._where} are of another kind than this run's ({'; '.join(faults)}). Weights only "
                "carry over between SAEs of one shape and architecture; set these keys alike."
            )
        return list(others)

    def starts(self, hookpoints: Sequence[str], scales: Scales) -> dict[str, InitialWeights]:
        """What each hookpoint's SAE starts from, by its group's name; those without a source are left out."""
        sources = self.sources(hookpoints)
        return {
            hookpoint: self._start(source, hookpoint, scales)
            for hookpoint, source in sources.items()
            if source is not None
        }

    def digest(self, hookpoints: Sequence[str]) -> str:
        """A hash of all that the starts of these hookpoints depend on: the sources' weights, scales and centers."""
        found = hashlib.sha256(self.direction.encode())
        for hookpoint, source in self.sources(hookpoints).items():
            if source is not None:
                found.update(f"{hookpoint}<-{source}/{_sha256(self.suite[source].sae)}".encode())
                if hookpoint in self.suite.scales.hookpoints:
                    scale, center_D = self.suite.scales.of(hookpoint)
                    found.update(f"{scale!r}".encode() + center_D.cpu().numpy().tobytes())
        return found.hexdigest()

    @property
    def _where(self) -> str:
        return " of ".join(part for part in (f"suite {self.name!r}" if self.name else "", self.run or "") if part) or (
            "the suite to start from"
        )

    def _start(self, source: str, hookpoint: str, scales: Scales) -> InitialWeights:
        bound = self.suite[source]
        sae = copy.deepcopy(bound.sae).to(scales.scale_L.device)
        if bound.maps is not None:
            bound.maps.fold_rotation(sae, bound.layer)
        if not _has_unit_rows(sae):
            sae.give_unit_rows()
        _change_units(sae, self.suite.scales, scales, hookpoint)
        origin = Origin(
            hookpoint=source,
            group=group_name(self.suite.partition.group_of(source)),
            direction=self.direction,
            sha256=_sha256(bound.sae),
            run=self.run,
            suite=self.name,
            lineage=bound.sae.lineage,
        )
        return InitialWeights(sae, origin)


def warm_rate(train: TrainConfig, d_sae: int) -> float:
    """The learning rate of a warm-started SAE: its own, or a third of one from scratch."""
    return train.warm_start.learning_rate or RATE_SHARE * (train.learning_rate or learning_rate(d_sae))


def _change_units(sae: SparseAutoencoder, before: Scales, after: Scales, hookpoint: str) -> None:
    """From one training's center and scale of a hookpoint to another's: the same function of raw activations.

    z = s (x - c) = (s / s') z' + s (c' - c). Where the first training did not read the hookpoint, there is
    nothing to change from.
    """
    if hookpoint not in before.hookpoints:
        return
    (scale, center_D), (new_scale, new_center_D) = before.of(hookpoint), after.of(hookpoint)
    shift_D = scale * (new_center_D - center_D.to(new_center_D.device))
    if scale != new_scale or shift_D.any():
        sae.change_inputs(scale / new_scale, shift_D)


def _differences(source: SparseAutoencoder, d_model: int, sae: SAEConfig) -> tuple[list[str], list[str]]:
    """What differs in shape or architecture, and what in other settings."""
    faults = []
    if source.d_model != d_model:
        faults.append(f"d_model: {source.d_model} -> {d_model}")
    if source.config.architecture != sae.architecture:
        return [*faults, f"sae.architecture: {source.config.architecture!r} -> {sae.architecture!r}"], []
    if source.d_model == d_model and source.d_sae != sae.width(d_model):
        faults.append(f"sae.d_sae: {source.d_sae} -> {sae.width(d_model)}")
    if source.config.architecture in _COMPARING and not _has_unit_rows(source):
        faults.append("decoder rows: of several norms -> of unit norm, which would change which latents are active")
    others = [line for line in differing_keys(source.config, sae, "sae.") if _key(line) not in _WIDTH]
    return faults, others


def _has_unit_rows(sae: SparseAutoencoder) -> bool:
    """True of all SAEs that were trained here; those of other tools may have rows of other norms."""
    norm_S = torch.linalg.vector_norm(sae.W_dec, dim=1)
    return bool(((norm_S - 1).abs() < ROUNDING).all())


def _key(difference: str) -> str:
    return difference.partition(":")[0].rpartition(".")[2]


def _sha256(sae: SparseAutoencoder) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
