"""SAEs in the files of dictionary_learning: `ae.pt`, a state dict, and `config.json` in a folder per hookpoint.

    pre = encoder.weight (x - b_dec) + encoder.bias      x_hat = decoder.weight latents + b_dec

AutoEncoderNew and JumpReluAutoEncoder do not subtract b_dec before they encode; their encoder's bias makes up for it.
Keys of `config.json` that it does not know do no harm there, but where an SAE comes from stands in `groupsae.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupsae.errors import HookpointError
from groupsae.hookpoints import layer_index
from groupsae.interop.files import save_pickle
from groupsae.interop.layout import Exported, Facts, Layout, write_suite
from groupsae.saes.activation import Gate, ReLU, Threshold, TopK
from groupsae.saes.folded import Folded
from groupsae.saes.suite import Suite

HOLDS = {TopK: "topk", Threshold: "batchtopk, matryoshka, jumprelu", ReLU: "relu", Gate: "gated"}


def export_dictionary_learning(
    suite: Suite,
    folder: str | Path,
    *,
    model_name: str | None = None,
    context_length: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a suite for dictionary_learning: `load_dictionary(folder / "layers.3", "cpu")` reads one hookpoint's SAE.

    Raises RunError if the folder holds anything already; with `overwrite`, anything but an export.
    """
    facts = Facts(model_name, context_length)
    return write_suite(suite, Path(folder), DICTIONARY_LEARNING, facts, overwrite=overwrite)


def _documents(exported: Exported) -> dict[str, dict[str, Any]]:
    folded = exported.folded
    d_sae, d_model = folded.W_enc_SD.shape
    trainer: dict[str, Any] = {
        "dict_class": _class(folded),
        "activation_dim": d_model,
        "dict_size": d_sae,
        "layer": _layer(exported.hookpoint),
        "lm_name": exported.facts.model,
        "submodule_name": exported.hookpoint,
    }
    if isinstance(folded.activation, (TopK, Threshold)):
        trainer["k"] = exported.provenance["sae"]["k"]
    buffer = {"ctx_len": exported.facts.context_length}
    return {"config.json": {"trainer": trainer, "buffer": buffer}, "groupsae.json": exported.provenance}


def _layer(hookpoint: str) -> int | None:
    try:
        return layer_index(hookpoint)
    except HookpointError:
        return None


def _class(folded: Folded) -> str:
    match folded.activation:
        case TopK():
            return "AutoEncoderTopK"
        case Threshold(threshold_S):
            return "BatchTopKSAE" if (threshold_S == threshold_S[0]).all() else "JumpReluAutoEncoder"
        case ReLU():
            return "AutoEncoderNew"
        case _:
            return "GatedAutoEncoder"


def _tensors(folded: Folded, provenance: dict[str, Any]) -> dict[str, Tensor]:
    encoder = {"encoder.weight": folded.W_enc_SD, "encoder.bias": folded.b_enc_S}
    decoder = {"decoder.weight": folded.W_dec_SD.T, "b_dec": folded.b_dec_D}
    reading_raw = folded.b_enc_S - folded.W_enc_SD @ folded.b_dec_D
    match folded.activation, _class(folded):
        case TopK(k), _:
            return encoder | decoder | {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
        case Threshold(threshold_S), "BatchTopKSAE":
            trained_k = torch.tensor(provenance["sae"]["k"], dtype=torch.int32)
            return encoder | decoder | {"k": trained_k, "threshold": threshold_S[0]}
        case Threshold(threshold_S), _:
            transposed = {"W_enc": folded.W_enc_SD.T, "W_dec": folded.W_dec_SD, "b_dec": folded.b_dec_D}
            return transposed | {"b_enc": reading_raw, "threshold": threshold_S}
        case Gate(scale_S, offset_S), _:
            b_mag_S = offset_S + scale_S * folded.b_enc_S
            gate = {"r_mag": scale_S.log(), "gate_bias": folded.b_enc_S, "mag_bias": b_mag_S}
            return gate | {
                "encoder.weight": folded.W_enc_SD,
                "decoder.weight": folded.W_dec_SD.T,
                "decoder_bias": folded.b_dec_D,
            }
        case _:
            weights = {"encoder.weight": folded.W_enc_SD, "decoder.weight": folded.W_dec_SD.T}
            return weights | {"encoder.bias": reading_raw, "decoder.bias": folded.b_dec_D}


DICTIONARY_LEARNING = Layout("dictionary_learning", "ae.pt", HOLDS, _documents, _tensors, save_pickle)
"""As `groupsae export --to dictionary_learning` writes it."""
