"""SAEs in the files of sparsify, and the releases of the Group-SAE paper, read.

Both have `cfg.json` beside `sae.safetensors`, in a folder named after the hookpoint. A release has a
`scaling_factors.pt` as well, the factor of each layer's activations, and in `cluster/` folders `k{G}-c{j}` of SAEs that
serve several layers; which ones stands in `config.json`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from groupsae.errors import ConfigError, RunError
from groupsae.interop.files import Form, count_of, load_pickle, read_json, read_safetensors
from groupsae.interop.foreign import ForeignSAE, Format, Options, Source
from groupsae.saes.activation import TopK
from groupsae.saes.folded import Folded

WEIGHTS = "sae.safetensors"
FACTORS = "scaling_factors.pt"
_CLUSTER = re.compile(r"k\d+-c\d+")
_REFUSED = {
    "skip_connection": "it adds a linear map of its input, which no SAE here has",
    "transcode": "it reconstructs another place than it reads",
    "signed": "its latents may be negative",
    "jumprelu": "its JumpReLU has no ReLU before it, and may keep negative latents",
}


def find_sparsify(folder: Path, options: Options) -> list[Source]:
    """The SAEs below a folder, but for those of a release."""
    return [_source(folder, path, options, None) for path in _configs(folder) if _factors(path, folder) is None]


def find_official(folder: Path, options: Options) -> list[Source]:
    """The SAEs of a release of the Group-SAE paper below a folder."""
    paths = [(path, _factors(path, folder)) for path in _configs(folder)]
    return [_source(folder, path, options, factors) for path, factors in paths if factors is not None]


def _configs(folder: Path) -> list[Path]:
    return [path.with_name("cfg.json") for path in sorted(folder.rglob(WEIGHTS)) if path.with_name("cfg.json").exists()]


def _factors(config: Path, folder: Path) -> Path | None:
    """The scaling factors that belong to an SAE: beside its folder, or beside the folder that was named."""
    for place in (config.parent.parent, config.parent):
        if (place / FACTORS).exists() and (place == folder or folder in place.parents or place in folder.parents):
            return place / FACTORS
    return None


def _source(folder: Path, config: Path, options: Options, factors: Path | None) -> Source:
    name = options.hookpoint or _name(folder, config)
    places = _clustered(config, name) if factors and _CLUSTER.fullmatch(name) else (name,)
    files = (config.with_name(WEIGHTS), config, *([factors] if factors else []))
    return Source(places, files, lambda: read(config, places, factors), _model(config))


def _name(folder: Path, config: Path) -> str:
    """The hookpoint: the folder's path below the one that was named, without `seedN`; what encloses it is no part."""
    parts = config.parent.relative_to(folder).parts or (folder.name,)
    parts = [part for part in parts if not re.fullmatch(r"seed\d+", part)]
    return (parts or [folder.name])[-1]


def _clustered(config: Path, name: str) -> tuple[str, ...]:
    """The layers of a cluster, from the release's `config.json`."""
    path = config.parent.parent / "config.json"
    clusters = read_json(path).get("clusters")
    layers = clusters.get(name) if isinstance(clusters, dict) else None
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, (int, str)) for layer in layers):
        raise RunError(f"{path} does not say which layers {name} serves: clusters.{name} should list them.")
    return tuple(f"layers.{layer}" if isinstance(layer, int) else layer for layer in layers)


def read(path: Path, places: tuple[str, ...], factors: Path | None = None) -> ForeignSAE:
    """The SAE of a folder. Raises RunError for damaged files, ConfigError for SAEs that have no form of ours."""
    config = read_json(path)
    for key, why in _REFUSED.items():
        if config.get(key):
            raise ConfigError(f"{path}: {key} = {config[key]!r}: {why}.")
    if config.get("activation", "topk") != "topk":
        raise ConfigError(f"{path}: activation {config['activation']!r} has no equal here; topk has.")
    d_in = count_of(config, "d_in", path)
    num_latents = config.get("num_latents") or d_in * count_of(config, "expansion_factor", path)
    shapes = {"encoder.weight": "SD", "encoder.bias": "S", "W_dec": "SD", "b_dec": "D"}
    weights = read_safetensors(path.with_name(WEIGHTS), Form(shapes, {"D": d_in, "S": num_latents}))
    k = count_of(config, "k", path)
    folded = Folded(*(weights[name] for name in shapes), TopK(k))
    return ForeignSAE(
        places,
        folded,
        k=k,
        scales=_scales(factors, places) if factors else None,
        model=_model(path),
        notes=weights.notes,
        facts=config,
    )


def _scales(path: Path, places: tuple[str, ...]) -> tuple[float, ...]:
    """What each layer's activations are multiplied by. Raises RunError where that is missing, or no number above 0."""
    factors = load_pickle(path)
    scales = []
    for place in places:
        try:
            scale = float(factors[place])
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError):
            raise RunError(f"{path} has no scaling factor of {place!r}, one number by the layer's name.") from None
        if not 0 < scale < float("inf"):
            raise RunError(f"{path}: the scaling factor of {place!r} is {scale}, where a number above 0 is needed.")
        scales.append(scale)
    return tuple(scales)


def _model(config: Path) -> str | None:
    """The language model, where a `config.json` of the training names it."""
    path: Path = config.parent.parent / "config.json"
    values: dict[str, Any] = read_json(path) if path.exists() else {}
    name = values.get("model") or values.get("model_name")
    return name if isinstance(name, str) else None


SPARSIFY_READER = Format("sparsify", f"cfg.json beside {WEIGHTS}, in a folder named after its hookpoint", find_sparsify)
OFFICIAL_READER = Format("group-sae", f"the same with {FACTORS}, in baseline/ and cluster/", find_official)
