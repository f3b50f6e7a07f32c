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
from groupsae.interop.model_facts import ModelFacts
from groupsae.saes.activation import Gate, ReLU, Threshold, TopK
from groupsae.saes.folded import Folded
from groupsae.saes.suite import Suite

FORMAT = "6.0.0"
"""The oldest version of SAELens that reads these files."""
TRANSFORMERS = "AutoModelForCausalLM"
ARCHITECTURES = {TopK: "topk", Threshold: "jumprelu", ReLU: "standard", Gate: "gated"}


def export_saelens(
    suite: Suite,
    folder: str | Path,
    *,
    model_name: str | None = None,
    context_length: int | None = None,
    prepend_bos: bool = False,
    exclude_special_tokens: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a suite for SAELens: `SAE.load_from_disk(folder / "layers.3")` reads the SAE of one hookpoint.

    `prepend_bos` says whether rows of the training text began with the tokenizer's first token,
    `exclude_special_tokens` whether special tokens were left out. Raises RunError if the folder holds anything
    already; with `overwrite`, anything but an export.
    """
    facts = Facts(model_name, context_length, prepend_bos, exclude_special_tokens, about=ModelFacts.find(model_name))
    return write_suite(suite, Path(folder), SAELENS, facts, overwrite=overwrite)


def _documents(exported: Exported) -> dict[str, dict[str, Any]]:
    folded, activation = exported.folded, exported.folded.activation
    metadata: dict[str, Any] = {
        "sae_lens_version": FORMAT,
        **_places(exported),
        "context_size": exported.facts.context_length,
        "prepend_bos": exported.facts.prepend_bos,
        "exclude_special_tokens": exported.facts.exclude_special_tokens,
        "group_layers": exported.provenance["group"],
        "groupsae": exported.provenance,
    }
    config = {
        "architecture": ARCHITECTURES[type(activation)],
        "d_in": len(folded.b_dec_D),
        "d_sae": len(folded.b_enc_S),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if exported.facts.skip_first:
        metadata["seqpos_slice"] = [exported.facts.skip_first, None]
    if isinstance(activation, TopK):
        config |= {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    return {"cfg.json": config}


def _tensors(folded: Folded, provenance: dict[str, Any]) -> dict[str, Tensor]:
    shared = {"W_enc": folded.W_enc_SD.T, "W_dec": folded.W_dec_SD, "b_dec": folded.b_dec_D}
    match folded.activation:
        case Gate(scale_S, offset_S):
            b_mag_S = offset_S + scale_S * folded.b_enc_S
            return shared | {"b_gate": folded.b_enc_S, "r_mag": scale_S.log(), "b_mag": b_mag_S}
        case Threshold(threshold_S):
            return shared | {"b_enc": folded.b_enc_S, "threshold": threshold_S}
        case _:
            return shared | {"b_enc": folded.b_enc_S}


def _places(exported: Exported) -> dict[str, Any]:
    """The model, the class that loads it, and the names of the place in it; why, where TransformerLens' is not given.

    A directory can only be loaded by transformers, a hub id by TransformerLens too.
    """
    facts, hookpoint = exported.facts, exported.hookpoint
    names: dict[str, Any] = {"model_name": facts.model, "model_from_pretrained_kwargs": {}}
    if facts.about is not None:
        names["hf_hook_name"] = facts.about.in_causal_lm(hookpoint)
    try:
        lens = to_transformer_lens(hookpoint, facts.about.model_type if facts.about else None)
    except HookpointError as error:
        own = names.get("hf_hook_name", hookpoint)
        return names | {"hook_name": own, "model_class_name": TRANSFORMERS, "hook_name_note": str(error)}
    if facts.about is not None and Path(facts.about.name).is_dir():
        local = {"model_name": str(Path(facts.about.name).resolve()), "model_class_name": TRANSFORMERS}
        note = f"TransformerLens, which calls this place {lens}, loads hub ids only"
        return names | local | {"hook_name": names["hf_hook_name"], "hook_name_note": note}
    return names | {"hook_name": lens, "model_class_name": "HookedTransformer"}


SAELENS = Layout("saelens", "sae_weights.safetensors", ARCHITECTURES, _documents, _tensors)
