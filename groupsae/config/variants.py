"""The variants of a sweep: every SAE setting with every seed, named by what differs between the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from groupsae.config.saes import SAESection
from groupsae.errors import ConfigError

LONGEST_NAME = 80
"""Characters of a variant's name, which becomes part of folders' names."""


@dataclass(frozen=True)
class Variant:
    """One SAE setting with one seed. Both names are empty in a config that holds one setting and one seed.

    name     part of the names of suites and SAEs: `k32-seed1`
    setting  the same without the seed: `k32`
    seed     decides the initial weights
    """

    name: str
    setting: str
    sae: SAESection
    seed: int

    def suite(self, kind: str) -> str:
        """The name of this variant's suite of a kind: `groups-k32` for `groups`."""
        return f"{kind}-{self.name}" if self.name else kind


def variants_of(saes: Sequence[SAESection], seeds: Sequence[int]) -> tuple[Variant, ...]:
    """Every setting with every seed. Raises ConfigError for two equal settings, and names that clash or are too long.

    A setting's name holds the values of all keys in which settings differ: `k32`, `relu-k32`.
    """
    settings = setting_names(saes)
    return tuple(
        Variant("-".join(part for part in (setting, _seed_name(seed, seeds)) if part), setting, sae, seed)
        for setting, sae in zip(settings, saes, strict=True)
        for seed in seeds
    )


def setting_names(saes: Sequence[SAESection]) -> tuple[str, ...]:
    """A name for each setting; empty for a single one. Raises ConfigError as `variants_of` does."""
    if len(saes) == 1:
        return ("",)
    for place, sae in enumerate(saes):
        if sae in saes[:place]:
            raise ConfigError(
                f"SAE settings {saes.index(sae) + 1} and {place + 1} are equal; leave one of them out, or give them "
                "different values. To train one setting several times, set seeds = [0, 1]."
            )
    keys = _differing(saes)
    names = tuple("-".join(_value_name(key, getattr(sae, key)) for key in keys if hasattr(sae, key)) for sae in saes)
    _require_good(names)
    return names


def _differing(saes: Sequence[SAESection]) -> list[str]:
    """The keys in which settings differ, among those that have them."""
    known = list(dict.fromkeys(key for sae in saes for key in type(sae).model_fields))
    values = {key: [getattr(sae, key) for sae in saes if hasattr(sae, key)] for key in known}
    return [key for key, found in values.items() if any(value != found[0] for value in found)]


def _require_good(names: Sequence[str]) -> None:
    folded = [name.casefold() for name in names]
    for place, name in enumerate(names):
        if folded[place] in folded[:place]:
            raise ConfigError(
                f"SAE settings {folded.index(folded[place]) + 1} and {place + 1} would both be named {name!r}: their "
                "values are too close to be told apart by 6 digits. Move them apart, or leave one out."
            )
        if len(name) > LONGEST_NAME:
            raise ConfigError(
                f"SAE setting {place + 1} would be named {name!r}, which is longer than the {LONGEST_NAME} characters "
                "that fit into a folder's name. Let settings differ in fewer keys."
            )


def _value_name(key: str, value: Any) -> str:
    """A key and its value, as part of a name: `k32`, `d_sae-auto`; an architecture's name stands alone."""
    if key == "architecture":
        return str(value)
    if value is None:
        return f"{key}-auto"
    return key + "+".join(map(_number, value if isinstance(value, tuple) else (value,)))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seed_name(seed: int, seeds: Sequence[int]) -> str:
    return f"seed{seed}" if len(seeds) > 1 else ""
