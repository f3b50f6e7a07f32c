"""SAEs in the files of dictionary_learning, read: `ae.pt`, a state dict, beside `config.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from groupsae.errors import ConfigError, RunError
from groupsae.interop.files import Form, Weights, count_of, key_of, read_json, read_pickle
from groupsae.interop.foreign import ForeignSAE, Format, Options, Source, reading_raw, with_unit_rows
from groupsae.saes.activation import Activation, Gate, ReLU, Threshold, TopK
from groupsae.saes.folded import Folded

WEIGHTS = "ae.pt"


@dataclass(frozen=True)
class _Kind:
    """One class of dictionaries: its tensors' shapes, and the names of our four among them."""

    shapes: dict[str, str]
    activation: Callable[[Weights, dict[str, Any], Path], Activation]
    W_enc: str = "encoder.weight"
    b_enc: str = "encoder.bias"
    W_dec: str = "decoder.weight"
    b_dec: str = "b_dec"
    subtracts_b_dec: bool = True
    unit_rows: bool = False
    ignored: tuple[str, ...] = ()


def _topk(weights: Weights, trainer: dict[str, Any], path: Path) -> Activation:
    k = int(weights["k"]) if "k" in weights else count_of(trainer, "k", path)
    if not 1 <= k <= weights.sizes["S"]:
        raise RunError(f"{weights.path} is damaged: k = {k} of {weights.sizes['S']} latents.")
    return TopK(k)


def _one_threshold(weights: Weights, trainer: dict[str, Any], path: Path) -> Activation:
    return Threshold(weights["threshold"].float().reshape(1).expand(weights.sizes["S"]).clamp_min(0))


def _thresholds(weights: Weights, trainer: dict[str, Any], path: Path) -> Activation:
    return Threshold(weights["threshold"].clamp_min(0))


def _gate(weights: Weights, trainer: dict[str, Any], path: Path) -> Activation:
    scale_S = weights["r_mag"].double().exp()
    return Gate(scale_S, weights["mag_bias"].double() - scale_S * weights["gate_bias"].double())


def _relu(weights: Weights, trainer: dict[str, Any], path: Path) -> Activation:
    return ReLU()


_LINEAR = {"encoder.weight": "SD", "encoder.bias": "S", "decoder.weight": "DS"}
_TRANSPOSED = {"W_enc": "DS", "b_enc": "S", "W_dec": "SD", "b_dec": "D"}
_NAMES = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec"}
KINDS = {
    "AutoEncoderTopK": _Kind(_LINEAR | {"b_dec": "D", "k": ""}, _topk, ignored=("threshold",)),
    "BatchTopKSAE": _Kind(_LINEAR | {"b_dec": "D", "threshold": ""}, _one_threshold, ignored=("k",)),
    "MatryoshkaBatchTopKSAE": _Kind(
        _TRANSPOSED | {"threshold": ""}, _one_threshold, **_NAMES, ignored=("k", "group_sizes")
    ),
    "AutoEncoder": _Kind(_LINEAR | {"bias": "D"}, _relu, b_dec="bias", unit_rows=True),
    "AutoEncoderNew": _Kind(_LINEAR | {"decoder.bias": "D"}, _relu, b_dec="decoder.bias", subtracts_b_dec=False),
    "JumpReluAutoEncoder": _Kind(_TRANSPOSED | {"threshold": "S"}, _thresholds, **_NAMES, subtracts_b_dec=False),
    "GatedAutoEncoder": _Kind(
        {"encoder.weight": "SD", "decoder.weight": "DS", "decoder_bias": "D"}
        | dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), "S"),
        _gate,
        b_enc="gate_bias",
        b_dec="decoder_bias",
    ),
}
_SUBMODULES = {"resid_post": "hook_resid_post", "attention_out": "hook_attn_out", "mlp_out": "hook_mlp_out"}


def find(folder: Path, options: Options) -> list[Source]:
    """The SAEs below a folder."""
    return [_source(path, options) for path in sorted(folder.rglob(WEIGHTS))]


def _source(weights: Path, options: Options) -> Source:
    path = weights.with_name("config.json")
    trainer = key_of(read_json(path), "trainer", dict, path)
    place = _place(trainer, options, path)
    return Source((place,), (weights, path), lambda: read(path, place), trainer.get("lm_name"))


def _place(trainer: dict[str, Any], options: Options, path: Path) -> str:
    layer, submodule = trainer.get("layer"), str(trainer.get("submodule_name") or "")
    if options.hookpoint:
        return options.hookpoint.replace("{layer}", str(layer))
    named = submodule.removesuffix(f"_layer_{layer}")
    if named in _SUBMODULES and type(layer) is int:
        return f"blocks.{layer}.{_SUBMODULES[named]}"
    if "." in submodule:
        return submodule
    raise RunError(
        f"{path} does not say which place it reads: trainer.layer = {layer!r}, trainer.submodule_name = {submodule!r}. "
        "Name it with --hookpoint, such as layers.{layer}."
    )


def read(path: Path, place: str) -> ForeignSAE:
    """The SAE of a folder. Raises RunError for damaged files, ConfigError for classes that have no form of ours."""
    config = read_json(path)
    trainer = key_of(config, "trainer", dict, path)
    name = key_of(trainer, "dict_class", str, path)
    if name not in KINDS:
        raise ConfigError(f"{path}: a dictionary of class {name!r} has no equal here. Known are {', '.join(KINDS)}.")
    kind, sizes = (
        KINDS[name],
        {"D": count_of(trainer, "activation_dim", path), "S": count_of(trainer, "dict_size", path)},
    )
    weights = read_pickle(path.with_name(WEIGHTS), Form(kind.shapes, sizes, ("k",), kind.ignored))
    folded = Folded(
        _rows(weights, kind, kind.W_enc, "SD"),
        weights[kind.b_enc],
        _rows(weights, kind, kind.W_dec, "SD"),
        weights[kind.b_dec],
        kind.activation(weights, trainer, path),
    )
    folded = folded if kind.subtracts_b_dec else reading_raw(folded)
    buffer = config.get("buffer")
    k = trainer.get("k", trainer.get("target_l0"))
    return ForeignSAE(
        (place,),
        with_unit_rows(folded) if kind.unit_rows else folded,
        k=round(k) if isinstance(k, (int, float)) and k >= 1 else None,
        model=trainer.get("lm_name"),
        context_length=buffer.get("ctx_len") if isinstance(buffer, dict) else None,
        notes=(*weights.notes, *_notes(weights, kind)),
        facts=config,
    )


def _rows(weights: Weights, kind: _Kind, name: str, wanted: str) -> Tensor:
    return weights[name] if kind.shapes[name] == wanted else weights[name].T.contiguous()


def _notes(weights: Weights, kind: _Kind) -> tuple[str, ...]:
    if kind.activation is _one_threshold and weights["threshold"] < 0:
        return ("the threshold was never measured in training (it is below 0): all positive latents are active",)
    return ()


READER = Format("dictionary_learning", f"{WEIGHTS} beside config.json", find)
