"""SAEs of other tools on their way in: plain weights, where they are read in the model, and our form of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupsae.config import BatchTopKConfig, GatedConfig, JumpReLUConfig, ReLUConfig, SAEConfig, TopKConfig
from groupsae.saes.activation import Gate, ReLU, Threshold, TopK
from groupsae.saes.base import SparseAutoencoder
from groupsae.saes.folded import Folded
from groupsae.saes.registry import build_sae

UNIT = 1e-4
"""Rows whose norms differ by less than this share are of one norm."""
DEFAULT_K = 128
"""The k of a config where the files do not say how many latents are active; nothing but reports reads it."""


@dataclass(frozen=True)
class ForeignSAE:
    """One SAE of another tool in our terms.

    `folded` are its plain weights (float32), as a function of activations that are multiplied by `scales`, one for each
    of `places`: names of hookpoints as the tool spells them. Without scales it reads raw activations. `k` is the number
    of active latents if it is known, `config` the full config where the files hold one of ours.
    """

    places: tuple[str, ...]
    folded: Folded
    k: int | None = None
    scales: tuple[float, ...] | None = None
    config: SAEConfig | None = None
    model: str | None = None
    context_length: int | None = None
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None
    """The tool's own config, for the record."""


@dataclass(frozen=True)
class Source:
    """An SAE that was found in a folder: the places that it serves, its files, and how it is read."""

    places: tuple[str, ...]
    files: tuple[Path, ...]
    read: Callable[[], ForeignSAE]
    model: str | None = None
    """The language model that the files name, known without reading weights."""

    @property
    def path(self) -> Path:
        """The file of weights."""
        return self.files[0]


@dataclass(frozen=True)
class Options:
    """What a person says because the files do not: the place, with `{layer}` for its number, and k."""

    hookpoint: str | None = None
    k: int | None = None


@dataclass(frozen=True)
class Format:
    """How one tool's SAEs are found below a folder; `looks_for` says by which files."""

    name: str
    looks_for: str
    find: Callable[[Path, Options], list[Source]]


# ---- plain weights


def reading_raw(folded: Folded) -> Folded:
    """Our plain weights, which subtract b_dec before they encode, of a tool's that do not: b_enc makes up for it."""
    shift_S = product(folded.W_enc_SD, folded.b_dec_D)
    return replace(folded, b_enc_S=(folded.b_enc_S.double() + shift_S).float())


def product(W_SD: Tensor, x_D: Tensor) -> Tensor:
    """W x in float64, without a second matrix in float64."""
    return torch.cat([W_RD.double() @ x_D.double() for W_RD in W_SD.split(4096)])


def with_row_norms(folded: Folded, norm_S: Tensor) -> Folded:
    """The same reconstruction with latents multiplied by these norms, and rows of the decoder divided by them.

    Of an SAE that compares pre-activations times the norms. Numbers in the activation must be those of the new latents.
    """
    divisor_S1 = torch.where(norm_S > 0, norm_S, 1.0)[:, None]
    return replace(
        folded,
        W_enc_SD=folded.W_enc_SD * norm_S[:, None],
        b_enc_S=folded.b_enc_S * norm_S,
        W_dec_SD=folded.W_dec_SD / divisor_S1,
    )


def with_unit_rows(folded: Folded) -> Folded:
    """`with_row_norms` of the decoder's own norms."""
    return with_row_norms(folded, torch.linalg.vector_norm(folded.W_dec_SD, dim=1))


def with_input_scale(folded: Folded, scale: float) -> Folded:
    """Plain weights for x, of an SAE that reads `scale` x and whose reconstruction is divided by `scale`."""
    return replace(
        folded,
        W_enc_SD=folded.W_enc_SD * scale,
        W_dec_SD=folded.W_dec_SD / scale,
        b_dec_D=folded.b_dec_D / scale,
    )


# ---- our form


def own_form(found: ForeignSAE) -> tuple[SparseAutoencoder, tuple[float, ...]]:
    """Our SAE and the scale of each place, which together do what the tool's SAE does to raw activations.

    Latents keep the tool's units. Where all decoder rows have one norm, that goes into the scale, so that the rows have
    unit norm; otherwise they stay as they are. The SAE is frozen.
    """
    folded, scales = found.folded, found.scales or tuple(1.0 for _ in found.places)
    factor = 1.0 if found.scales else _row_scale(folded.W_dec_SD)
    sae = build_sae(folded.W_dec_SD.shape[1], _config(found))
    with torch.no_grad():
        sae.W_enc.copy_(folded.W_enc_SD if factor == 1 else folded.W_enc_SD / factor)
        sae.W_dec.copy_(folded.W_dec_SD if factor == 1 else folded.W_dec_SD * factor)
        sae.b_enc.copy_(folded.b_enc_S)
        sae.b_dec.copy_(folded.b_dec_D if factor == 1 else folded.b_dec_D * factor)
        _set_activation(sae, folded)
    return sae.requires_grad_(False), tuple(scale * factor for scale in scales)


def _row_scale(W_SD: Tensor) -> float:
    """One over the norm of the rows, if all that are not zero have one norm; else 1. Unit rows are left untouched."""
    norm_S = torch.linalg.vector_norm(W_SD, dim=1)
    norm_S = norm_S[norm_S > 0]
    if not len(norm_S):
        return 1.0
    mean = norm_S.double().mean().item()
    same = (norm_S / mean - 1).abs().max().item() < UNIT
    return torch.tensor(1 / mean).item() if same and abs(mean - 1) >= UNIT else 1.0


def _config(found: ForeignSAE) -> SAEConfig:
    d_sae = len(found.folded.b_enc_S)
    if found.config is not None:
        return found.config.model_copy(update={"d_sae": d_sae})
    size = {"d_sae": d_sae, "k": min(found.k or DEFAULT_K, d_sae)}
    match found.folded.activation:
        case TopK(k):
            return TopKConfig(d_sae=d_sae, k=k)
        case Threshold(threshold_S):
            same = d_sae > 1 and bool((threshold_S == threshold_S[0]).all())
            return BatchTopKConfig(**size) if same else JumpReLUConfig(**size)
        case ReLU():
            return ReLUConfig(**size)
        case _:
            return GatedConfig(**size)


def _set_activation(sae: SparseAutoencoder, folded: Folded) -> None:
    match folded.activation:
        case Threshold(threshold_S) if sae.config.architecture == "jumprelu":
            smallest = torch.finfo(torch.float32).tiny  # 0 has no logarithm; nothing is between
            sae.log_threshold.copy_(threshold_S.double().clamp_min(smallest).log())
        case Threshold(threshold_S):
            sae.threshold.total.copy_(threshold_S[0].clamp_min(0))
            sae.threshold.weight.fill_(1)
        case Gate(scale_S, offset_S):
            sae.r_mag.copy_(scale_S.double().log())
            sae.b_mag.copy_(offset_S.double() + scale_S.double() * folded.b_enc_S.double())
