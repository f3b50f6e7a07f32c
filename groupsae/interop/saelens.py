"""SAEs in the files of SAELens 6: `cfg.json` and `sae_weights.safetensors` in a folder per hookpoint.

    pre = (x - b_dec) @ W_enc + b_enc      x_hat = latents @ W_dec + b_dec

Latents keep their units, so no norm of the decoder's rows may be applied (`rescale_acts_by_decoder_norm`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from groupsae.errors import HookpointError
from groupsae.hookpoints import to_transformer_lens
from groupsae.interop.layout import Exported, Facts, Layout, write_suite
from groupsae.saes.activation import Gate, ReLU, Threshold, TopK
from groupsae.saes.folded import Folded
from groupsae.saes.suite import Suite

FORMAT = "6.0.0"
"""The oldest version of SAELens that reads these files."""
ARCHITECTURES = {TopK: "topk", Threshold: "jumprelu", ReLU: "standard", Gate: "gated"}


def export_saelens(
    suite: Suite,
    folder: str | Path,
    *,
    model_name: str | None = None,
    context_length: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a suite for SAELens: `SAE.load_from_disk(folder / "layers.3")` reads the SAE of one hookpoint.

    Raises RunError if the folder holds anything already; with `overwrite`, anything but an export.
    """
    return write_suite(suite, Path(folder), SAELENS, Facts(model_name, context_length), overwrite=overwrite)


def _documents(exported: Exported) -> dict[str, dict[str, Any]]:
    folded, activation = exported.folded, exported.folded.activation
    config = {
        "architecture": ARCHITECTURES[type(activation)],
        "d_in": len(folded.b_dec_D),
        "d_sae": len(folded.b_enc_S),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": FORMAT,
            "model_name": exported.facts.model,
            "hook_name": _hook_name(exported.hookpoint),
            "hf_hook_name": exported.hookpoint,
            "context_size": exported.facts.context_length,
            "prepend_bos": False,
            "group_layers": exported.provenance["group"],
            "groupsae": exported.provenance,
        },
    }
    if isinstance(activation, TopK):
        config |= {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    return {"cfg.json": config}


def _tensors(folded: Folded) -> dict[str, Tensor]:
    shared = {"W_enc": folded.W_enc_SD.T, "W_dec": folded.W_dec_SD, "b_dec": folded.b_dec_D}
    match folded.activation:
        case Gate(scale_S, offset_S):
            b_mag_S = offset_S + scale_S * folded.b_enc_S
            return shared | {"b_gate": folded.b_enc_S, "r_mag": scale_S.log(), "b_mag": b_mag_S}
        case Threshold(threshold_S):
            return shared | {"b_enc": folded.b_enc_S, "threshold": threshold_S}
        case _:
            return shared | {"b_enc": folded.b_enc_S}


def _hook_name(hookpoint: str) -> str:
    """TransformerLens' name, where it has one."""
    try:
        return to_transformer_lens(hookpoint)
    except HookpointError:
        return hookpoint


SAELENS = Layout("saelens", "sae_weights.safetensors", ARCHITECTURES, _documents, _tensors)
