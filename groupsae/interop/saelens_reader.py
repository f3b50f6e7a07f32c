"""SAEs in the files of SAELens, read: `cfg.json` beside `sae_weights.safetensors`, of version 6 and before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupsae.config import SAEConfig
from groupsae.errors import ConfigError, RunError
from groupsae.interop.files import Form, Weights, count_of, read_json, read_safetensors
from groupsae.interop.foreign import ForeignSAE, Format, Options, Source, reading_raw, with_unit_rows
from groupsae.saes.activation import Activation, Gate, ReLU, Threshold, TopK
from groupsae.saes.folded import Folded
from groupsae.saes.registry import ARCHITECTURES

WEIGHTS = "sae_weights.safetensors"
_SHARED = {"W_enc": "DS", "W_dec": "SD", "b_dec": "D"}
_OWN = {
    "standard": {"b_enc": "S"},
    "topk": {"b_enc": "S"},
    "jumprelu": {"b_enc": "S", "threshold": "S"},
    "batchtopk": {"b_enc": "S", "topk_threshold": ""},
    "gated": {"b_gate": "S", "b_mag": "S", "r_mag": "S"},
}
_OLD_KEYS = {"hook_point": "hook_name", "hook_point_layer": "hook_layer", "activation_fn_str": "activation_fn"}
_PER_TOKEN = {
    "constant_norm_rescale": "each token is divided by its own norm",
    "layer_norm": "each token is standardized by its own mean and standard deviation",
}


def find(folder: Path, options: Options) -> list[Source]:
    """The SAEs below a folder."""
    found = []
    for weights in sorted(folder.rglob(WEIGHTS)):
        path = weights.with_name("cfg.json")
        if path.exists():
            found.append(_source(path, weights, options))
    return found


def _source(path: Path, weights: Path, options: Options) -> Source:
    config = _new_form(read_json(path))
    metadata = config["metadata"]
    own = metadata.get("groupsae")
    place = options.hookpoint or (own.get("hookpoint") if isinstance(own, dict) else None)
    place = place or metadata.get("hf_hook_name") or metadata.get("hook_name")
    if not isinstance(place, str):
        raise RunError(f"{path} does not say which place it reads (metadata.hook_name); name it with --hookpoint.")
    return Source((place,), (weights, path), lambda: read(path, place), _text(config["metadata"].get("model_name")))


def read(path: Path, place: str) -> ForeignSAE:
    """The SAE of a folder. Raises RunError for damaged files, ConfigError for SAEs that have no form of ours."""
    config = _new_form(read_json(path))
    architecture = _architecture(config, path)
    _require_raw_input(config, path)
    sizes = {"D": count_of(config, "d_in", path), "S": count_of(config, "d_sae", path)}
    form = Form(_SHARED | _OWN[architecture] | {"scaling_factor": "S"}, sizes, ("scaling_factor",))
    weights = read_safetensors(path.with_name(WEIGHTS), form)
    if "scaling_factor" in weights and not (weights["scaling_factor"] == 1).all():
        raise ConfigError(f"{path.parent}: latents are rescaled by a fine-tuned scaling_factor, which no SAE here has.")
    metadata = config["metadata"]
    folded = _folded(architecture, config, weights, path)
    own = _own_config(metadata, folded.activation, path)
    k = config.get("k") or (own.k if own else None)
    return ForeignSAE(
        (place,),
        folded,
        k=k,
        config=own,
        model=_text(metadata.get("model_name")),
        context_length=metadata.get("context_size"),
        notes=(*weights.notes, *_notes(config)),
        facts=config,
    )


def _new_form(config: dict[str, Any]) -> dict[str, Any]:
    """A config as version 6 writes it: what older versions kept flat is in `metadata` too."""
    flat = {_OLD_KEYS.get(key, key): value for key, value in config.items()}
    metadata = flat.get("metadata") if isinstance(flat.get("metadata"), dict) else flat
    kwargs = flat.get("activation_fn_kwargs") or {}
    if flat.get("activation_fn") == "topk" and isinstance(kwargs, dict):
        flat |= {"architecture": "topk", "k": kwargs.get("k")}
    return flat | {"metadata": metadata}


def _architecture(config: dict[str, Any], path: Path) -> str:
    name = config.get("architecture") or "standard"
    name = {"matryoshka_batchtopk": "batchtopk", "matryoshka": "batchtopk"}.get(name, name)
    if name not in _OWN:
        why = "reconstructs another place than it reads" if "transcoder" in name else "has no equal here"
        raise ConfigError(f"{path}: an SAE of architecture {name!r} {why}. Known are {', '.join(_OWN)}.")
    if name == "standard" and config.get("activation_fn", "relu") != "relu":
        raise ConfigError(f"{path}: activation_fn {config['activation_fn']!r} has no equal here; relu and topk have.")
    return name


def _require_raw_input(config: dict[str, Any], path: Path) -> None:
    """Raises ConfigError for an SAE that reads something else than a module's raw output."""
    normalize = config.get("normalize_activations") or "none"
    if normalize in _PER_TOKEN:
        raise ConfigError(
            f"{path}: normalize_activations = {normalize!r}: {_PER_TOKEN[normalize]}, which no weights can express."
        )
    if normalize not in ("none", False):
        raise ConfigError(
            f"{path}: normalize_activations = {normalize!r}: what activations are multiplied by is not in these files. "
            "Fold it in with SAELens (sae.fold_activation_norm_scaling_factor) and save again."
        )
    if (config.get("reshape_activations") or "none") != "none":
        raise ConfigError(f"{path}: reshape_activations = {config['reshape_activations']!r}: it reads attention heads.")
    if config["metadata"].get("hook_head_index") is not None:
        raise ConfigError(f"{path}: it reads one attention head, which is no module's output.")
    options = config["metadata"].get("model_from_pretrained_kwargs") or {}
    if isinstance(options, dict) and options.get("center_writing_weights"):
        raise ConfigError(
            f"{path}: it was trained on activations that TransformerLens had centered (center_writing_weights): the "
            "mean over dimensions is missing from them, and it could not be reconstructed from what Hugging Face gives."
        )


def _folded(architecture: str, config: dict[str, Any], weights: Weights, path: Path) -> Folded:
    bias = "b_gate" if architecture == "gated" else "b_enc"
    folded = Folded(
        weights["W_enc"].T.contiguous(),
        weights[bias],
        weights["W_dec"],
        weights["b_dec"],
        _activation(architecture, config, weights, path),
    )
    if config.get("apply_b_dec_to_input", True) is False:
        folded = reading_raw(folded)
    return with_unit_rows(folded) if config.get("rescale_acts_by_decoder_norm") else folded


def _activation(architecture: str, config: dict[str, Any], weights: Weights, path: Path) -> Activation:
    match architecture:
        case "topk":
            return TopK(count_of(config, "k", path))
        case "jumprelu":
            return Threshold(weights["threshold"].clamp_min(0))
        case "batchtopk":
            return Threshold(_number(weights["topk_threshold"]).expand(weights.sizes["S"]).clamp_min(0))
        case "gated":
            scale_S = weights["r_mag"].double().exp()
            return Gate(scale_S, weights["b_mag"].double() - scale_S * weights["b_gate"].double())
        case _:
            return ReLU()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).reshape(1)


def _own_config(metadata: dict[str, Any], activation: Activation, path: Path) -> SAEConfig | None:
    """The config of an SAE that we exported, if it still fits: such files come back as what they were."""
    provenance = metadata.get("groupsae")
    if not isinstance(provenance, dict) or "sae" not in provenance:
        return None
    try:
        values = provenance["sae"]
        config = ARCHITECTURES[values["architecture"]][0](**values)
    except (KeyError, TypeError, ConfigError) as error:
        raise RunError(f"{path} is damaged: metadata.groupsae.sae is no config of an SAE: {error}") from None
    kinds = {TopK: ("topk",), ReLU: ("relu",), Gate: ("gated",), Threshold: ("batchtopk", "matryoshka", "jumprelu")}
    return config if config.architecture in kinds[type(activation)] else None


def _notes(config: dict[str, Any]) -> tuple[str, ...]:
    if config.get("rescale_acts_by_decoder_norm"):
        return ("latents are those of unit decoder rows: SAELens' rescale_acts_by_decoder_norm is folded in",)
    return ()


READER = Format("saelens", f"cfg.json beside {WEIGHTS}", find)
