"""Suites that were published without their code: Gemma Scope 1 and 2, Qwen-Scope, Llama Scope.

None of them subtracts b_dec before it encodes.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupsae.errors import ConfigError, RunError
from groupsae.interop.files import Form, Weights, count_of, key_of, read_json, read_npz, read_pickle, read_safetensors
from groupsae.interop.foreign import (
    ForeignSAE,
    Format,
    Options,
    Source,
    reading_raw,
    with_input_scale,
    with_row_norms,
)
from groupsae.saes.activation import Activation, ReLU, Threshold, TopK
from groupsae.saes.folded import Folded

# ---- Gemma Scope 1: layer_20/width_16k/average_l0_71/params.npz

_FIRST_FORM = Form({"W_enc": "DS", "b_enc": "S", "W_dec": "SD", "b_dec": "D", "threshold": "S"})
_FIRST_SITES = {"res": "blocks.{layer}.hook_resid_post", "mlp": "blocks.{layer}.hook_mlp_out"}


def find_gemma_scope(folder: Path, options: Options) -> list[Source]:
    """The SAEs of Gemma Scope below a folder."""
    return [_gemma_scope_source(path, options) for path in sorted(folder.rglob("params.npz"))]


def _gemma_scope_source(path: Path, options: Options) -> Source:
    repository = re.search(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)", path.resolve().as_posix())
    repository = repository or re.search(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)", path.as_posix())
    layer, site = re.search(r"layer_(\d+)", path.as_posix()), repository[3] if repository else None
    if "embedding" in path.parts:
        raise ConfigError(f"{path}: an SAE of the embedding, which comes before the blocks and is not read here.")
    if site == "att":
        raise ConfigError(
            f"{path}: an SAE of attention heads before they are mixed (hook_z), which is no module's output."
        )
    if site == "transcoders":
        raise ConfigError(f"{path}: a transcoder, which reconstructs another place than it reads.")
    template = options.hookpoint or _FIRST_SITES.get(site or "")
    if template is None or layer is None:
        raise RunError(
            f"{path} does not say which place it reads: no folder is called gemma-scope-*-res or -mlp, or none "
            "layer_N. Name the place with --hookpoint, such as layers.{layer}."
        )
    l0 = re.search(r"average_l0_(\d+)", path.as_posix())
    place = template.replace("{layer}", layer[1])
    model = f"google/gemma-2-{repository[1]}" + "-it" * (repository[2] == "it") if repository else None
    k = options.k or (max(1, int(l0[1])) if l0 else None)
    return Source((place,), (path,), lambda: _jumprelu(read_npz(path, _FIRST_FORM), place, k, model), model)


def _jumprelu(weights: Weights, place: str, k: int | None, model: str | None, facts: Any = None) -> ForeignSAE:
    named = {name.lower(): tensor for name, tensor in weights.tensors.items()}
    activation = Threshold(named["threshold"].clamp_min(0))
    folded = Folded(named["w_enc"].T.contiguous(), named["b_enc"], named["w_dec"], named["b_dec"], activation)
    return ForeignSAE((place,), reading_raw(folded), k=k, model=model, notes=weights.notes, facts=facts)


# ---- Gemma Scope 2: resid_post/layer_12_width_16k_l0_small/params.safetensors beside config.json

_SECOND_SHAPES = {"w_enc": "DS", "b_enc": "S", "w_dec": "SD", "b_dec": "D", "threshold": "S"}


def find_gemma_scope_2(folder: Path, options: Options) -> list[Source]:
    """The SAEs of Gemma Scope 2 below a folder."""
    return [_gemma_scope_2_source(path, options) for path in sorted(folder.rglob("params.safetensors"))]


def _gemma_scope_2_source(weights: Path, options: Options) -> Source:
    path = weights.with_name("config.json")
    config = read_json(path)
    if config.get("architecture") != "jump_relu":
        raise ConfigError(f"{path}: architecture {config.get('architecture')!r} has no equal here; jump_relu has.")
    if config.get("hf_hook_point_out", config.get("hf_hook_point_in")) != config.get("hf_hook_point_in"):
        raise ConfigError(f"{path}: a transcoder, which reconstructs another place than it reads.")
    if config.get("affine_connection"):
        raise ConfigError(f"{path}: it adds an affine map of its input, which no SAE here has.")
    place = options.hookpoint or key_of(config, "hf_hook_point_in", str, path)
    if place.endswith(".input"):
        raise ConfigError(f"{path}: it reads the input of a module ({place}); only outputs are read here.")
    layer = re.search(r"\d+", str(config.get("hf_hook_point_in", "")))
    place = place.removesuffix(".output").replace("{layer}", layer[0] if layer else "{layer}")
    model, l0 = _gemma_3(config.get("model_name")), config.get("l0")
    k = options.k or (max(1, round(l0)) if isinstance(l0, (int, float)) else None)
    form = Form(_SECOND_SHAPES)
    read = lambda: _jumprelu(read_safetensors(weights, form), place, k, model, config)  # noqa: E731
    return Source((place,), (weights, path), read, model)


def _gemma_3(name: Any) -> str | None:
    """The hub id of a model that Gemma Scope 2 names, as `gemma-v3-1b-pt`; the 270m model has no suffix there."""
    if not isinstance(name, str):
        return None
    name = name.replace("-v3-", "-3-") if "/" in name else f"google/{name.replace('-v3-', '-3-')}"
    return name.removesuffix("-pt") if name.endswith("270m-pt") else name


# ---- Qwen-Scope: layer0.sae.pt, ...

_QWEN_FORM = Form({"W_enc": "SD", "b_enc": "S", "W_dec": "DS", "b_dec": "D"})


def find_qwen_scope(folder: Path, options: Options) -> list[Source]:
    """The SAEs of Qwen-Scope below a folder."""
    paths = [path for path in folder.rglob("layer*.sae.pt") if re.fullmatch(r"layer\d+\.sae\.pt", path.name)]
    return [_qwen_scope_source(path, options) for path in sorted(paths)]


def _qwen_scope_source(path: Path, options: Options) -> Source:
    named = re.search(r"SAE-Res-([\w.-]+?)-W\d+K-L0_(\d+)", path.absolute().as_posix())
    layer = re.search(r"\d+", path.name)[0]
    k = options.k or (int(named[2]) if named else None)
    if k is None:
        raise RunError(
            f"{path}: no file says how many latents are active; the hub names it, as L0_50. Give it with --k."
        )
    place = (options.hookpoint or "blocks.{layer}.hook_resid_post").replace("{layer}", layer)
    model = f"Qwen/{named[1]}" if named else None
    return Source((place,), (path,), lambda: _read_qwen_scope(path, place, k, model), model)


def _read_qwen_scope(path: Path, place: str, k: int, model: str | None) -> ForeignSAE:
    weights = read_pickle(path, _QWEN_FORM)
    if k > weights.sizes["S"]:
        raise ConfigError(f"{path}: k = {k} is more than the {weights.sizes['S']} latents there are.")
    W_dec_SD = weights["W_dec"].T.contiguous()
    folded = reading_raw(Folded(weights["W_enc"], weights["b_enc"], W_dec_SD, weights["b_dec"], TopK(k)))
    note = "where fewer than k pre-activations are positive, negative latents of the original are left out"
    return ForeignSAE((place,), folded, k=k, model=model, notes=(*weights.notes, note))


# ---- Llama Scope and OpenMOSS' later files

_OLD = {"encoder.weight": "SD", "encoder.bias": "S", "decoder.weight": "DS", "decoder.bias": "D"}
_NEW = {"W_E": "DS", "b_E": "S", "W_D": "SD", "b_D": "D"}
_LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm."


def find_llama_scope(folder: Path, options: Options) -> list[Source]:
    """The SAEs of Llama Scope, and of OpenMOSS' library, below a folder."""
    old = [(path.parents[1] / "hyperparams.json", path) for path in folder.rglob("checkpoints/final.safetensors")]
    new = [(path.with_name("config.json"), path) for path in folder.rglob("sae_weights.safetensors")]
    found = [(config, path) for config, path in (*old, *new) if config.exists()]
    return [_llama_scope_source(config, path, options) for config, path in sorted(found)]


def _llama_scope_source(path: Path, weights: Path, options: Options) -> Source:
    config = read_json(path)
    hook = key_of(config, "hook_point_in", str, path)
    if config.get("hook_point_out", hook) != hook:
        raise ConfigError(f"{path}: a transcoder, which reconstructs another place than it reads.")
    layer = re.search(r"\d+", hook)
    place = options.hookpoint.replace("{layer}", layer[0] if layer else "") if options.hookpoint else hook
    return Source((place,), (weights, path), lambda: _read_llama_scope(path, weights, place), _llama(path))


def _read_llama_scope(path: Path, file: Path, place: str) -> ForeignSAE:
    config = read_json(path)
    _require_plain(config, path)
    weights = _llama_weights(config, path, file)
    scale = _dataset_scale(config, weights, path)
    W_enc_SD, b_enc_S, W_dec_SD, b_dec_D = _oriented(weights)
    norm_S = torch.linalg.vector_norm(W_dec_SD, dim=1)
    gated = bool(config.get("sparsity_include_decoder_norm", True))
    activation = _llama_activation(config, weights, scale, norm_S if gated else torch.ones_like(norm_S), path)
    folded = with_input_scale(Folded(W_enc_SD, b_enc_S, W_dec_SD, b_dec_D, activation), scale)
    if not config.get("apply_decoder_bias_to_pre_encoder", False):
        folded = reading_raw(folded)
    notes = weights.notes
    if isinstance(activation, TopK) and gated:
        folded = with_row_norms(folded, norm_S)
        notes = (*notes, "latents are multiplied by the norm of their decoder row")
    k = config.get("top_k")
    k = k if type(k) is int and k > 0 else None
    return ForeignSAE((place,), folded, k=k, model=_llama(path), notes=notes, facts=config)


def _llama(path: Path) -> str | None:
    return "meta-llama/Llama-3.1-8B" if "Llama3_1-8B-Base" in path.absolute().as_posix() else None


def _require_plain(config: dict[str, Any], path: Path) -> None:
    """Raises ConfigError for what no SAE here can do."""
    if config.get("use_glu_encoder"):
        raise ConfigError(f"{path}: use_glu_encoder: a second encoder, which no SAE here has.")
    if config.get("norm_activation", "dataset-wise") not in ("dataset-wise", "inference"):
        raise ConfigError(
            f"{path}: norm_activation = {config['norm_activation']!r}: each token or batch is divided by its own norm, "
            "which no weights can express."
        )
    if config.get("act_fn") not in ("jumprelu", "topk", "relu"):
        raise ConfigError(f"{path}: act_fn = {config.get('act_fn')!r} has no equal here; jumprelu, topk and relu have.")
    if config.get("use_decoder_bias") is False:
        raise ConfigError(f"{path}: use_decoder_bias = false is not known from any release, and not read.")


def _llama_weights(config: dict[str, Any], path: Path, file: Path) -> Weights:
    d_model = count_of(config, "d_model", path)
    d_sae = config.get("d_sae") or int(d_model * key_of(config, "expansion_factor", float, path))
    norms = {f"{_NORM}{config[key]}": "" for key in ("hook_point_in", "hook_point_out") if key in config}
    shapes = _OLD if file.name == "final.safetensors" else _NEW | {_LOG_THRESHOLD: "S"} | norms
    return read_safetensors(file, Form(shapes, {"D": d_model, "S": d_sae}, (_LOG_THRESHOLD, *norms)))


def _oriented(weights: Weights) -> tuple[Tensor, ...]:
    if "W_E" in weights:
        return weights["W_E"].T.contiguous(), weights["b_E"], weights["W_D"], weights["b_D"]
    decoder_SD = weights["decoder.weight"].T.contiguous()
    return weights["encoder.weight"], weights["encoder.bias"], decoder_SD, weights["decoder.bias"]


def _dataset_scale(config: dict[str, Any], weights: Weights, path: Path) -> float:
    """What activations are multiplied by: sqrt(D) over their mean norm in the training text."""
    if config.get("norm_activation", "dataset-wise") == "inference":
        return 1.0
    norms = config.get("dataset_average_activation_norm")
    norm = norms.get("in") if isinstance(norms, dict) else None
    hook = f"{_NORM}{config['hook_point_in']}"
    if hook in weights:
        norm = weights[hook].item()
    if not isinstance(norm, (int, float)) or not 0 < norm < math.inf:
        raise RunError(f"{path} lacks dataset_average_activation_norm.in, which activations are divided by.")
    return math.sqrt(weights.sizes["D"]) / norm


def _llama_activation(config: dict[str, Any], weights: Weights, scale: float, norm_S: Tensor, path: Path) -> Activation:
    """Thresholds of released layers are 0.026 to 0.033 of the mean norm there: they are meant in raw units.

    A later file's thresholds, one per latent, are meant in normalized units.
    """
    if config["act_fn"] == "topk":
        return TopK(count_of(config, "top_k", path))
    if config["act_fn"] == "relu":
        return ReLU()
    if _LOG_THRESHOLD in weights:
        return Threshold(weights[_LOG_THRESHOLD].exp() / norm_S)
    return Threshold(key_of(config, "jump_relu_threshold", float, path) * scale / norm_S)


READERS = (
    Format("gemma-scope", "params.npz, in layer_N/width_W/average_l0_L", find_gemma_scope),
    Format("gemma-scope-2", "params.safetensors beside config.json", find_gemma_scope_2),
    Format("qwen-scope", "layer0.sae.pt, layer1.sae.pt, ...", find_qwen_scope),
    Format("llama-scope", "hyperparams.json with checkpoints/final.safetensors", find_llama_scope),
)
