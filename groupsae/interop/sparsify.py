"""SAEs in the files of sparsify: `cfg.json` and `sae.safetensors` in a folder per hookpoint. It holds TopK only.

    pre = encoder.weight (x - b_dec) + encoder.bias      x_hat = W_dec^T latents + b_dec

Keys that it does not know it complains about, so that where an SAE comes from stands in `groupsae.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor

from groupsae.interop.layout import Exported, Facts, Layout, write_suite
from groupsae.saes.activation import TopK
from groupsae.saes.folded import Folded
from groupsae.saes.suite import Suite


def export_sparsify(suite: Suite, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a suite for sparsify: `SparseCoder.load_many(folder, local=True)` reads all of it, by hookpoint.

    Raises ConfigError for SAEs that are not TopK; RunError if the folder holds anything already, with `overwrite`
    anything but an export.
    """
    return write_suite(suite, Path(folder), SPARSIFY, Facts(), overwrite=overwrite)


def _documents(exported: Exported) -> dict[str, dict[str, Any]]:
    d_sae, d_model = exported.folded.W_enc_SD.shape
    config = {
        "activation": "topk",
        "expansion_factor": d_sae // d_model,
        "num_latents": d_sae,  # counts, where the factor is no whole number
        "k": cast(TopK, exported.folded.activation).k,
        "normalize_decoder": False,  # rows hold the hookpoint's scale
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": d_model,
    }
    return {"cfg.json": config, "groupsae.json": exported.provenance}


def _tensors(folded: Folded, provenance: dict[str, Any]) -> dict[str, Tensor]:
    return {
        "encoder.weight": folded.W_enc_SD,
        "encoder.bias": folded.b_enc_S,
        "W_dec": folded.W_dec_SD,
        "b_dec": folded.b_dec_D,
    }


SPARSIFY = Layout("sparsify", "sae.safetensors", {TopK: "topk"}, _documents, _tensors)
