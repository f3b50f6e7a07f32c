"""One hookpoint's SAE as the object that SAEBench and sae-probes evaluate: plain weights, config, encode, decode."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from groupsae.hookpoints import layer_index, to_transformer_lens
from groupsae.saes.activation import Activation, Gate, Threshold, TopK
from groupsae.saes.folded import Folded

ONE_NORM = 1e-4
"""Rows whose norms differ by less than this share are of one norm."""
ARCHITECTURES = {TopK: "topk", Threshold: "jumprelu", Gate: "gated"}


@dataclass
class BenchConfig:
    """What SAEBench 0.6 reads of an SAE; places are TransformerLens'."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    context_size: int
    dtype: str
    device: str
    prepend_bos: bool = True
    hook_head_index: int | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = 0
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None
    architecture_str: str = ""
    """The architecture again, as a part of SAEBench calls it."""

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict."""
        return asdict(self)


class BenchSAE(nn.Module):
    """Raw activations (..., D) in and out, latents (..., S) between.

    Weights are W_enc (D, S), b_enc (S,), W_dec (S, D) and b_dec (D,), of raw activations.
    """

    def __init__(self, folded: Folded, config: BenchConfig) -> None:
        super().__init__()
        self.cfg = config
        self.W_enc = nn.Parameter(folded.W_enc_SD.T.float().contiguous(), requires_grad=False)
        self.b_enc = nn.Parameter(folded.b_enc_S.float(), requires_grad=False)
        self.W_dec = nn.Parameter(folded.W_dec_SD.float(), requires_grad=False)
        self.b_dec = nn.Parameter(folded.b_dec_D.float(), requires_grad=False)
        self._numbers = nn.ParameterList(_numbers(folded.activation))
        self._activation = folded.activation
        if isinstance(folded.activation, Gate):
            self.b_mag = nn.Parameter((folded.activation.offset_S + folded.activation.scale_S * folded.b_enc_S).float())

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Their precision."""
        return self.W_enc.dtype

    def encode(self, x: Tensor) -> Tensor:
        """The latents (..., S) of raw activations (..., D)."""
        x_ND = x.reshape(-1, x.shape[-1]).to(self.dtype)
        pre_NS = (x_ND - self.b_dec) @ self.W_enc + self.b_enc
        activation = self._activation
        if not isinstance(activation, TopK):
            activation = type(activation)(*self._numbers)
        return activation(pre_NS).reshape(*x.shape[:-1], self.W_enc.shape[1])

    def decode(self, latents: Tensor) -> Tensor:
        """The raw activations (..., D) that latents (..., S) stand for."""
        return latents @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of raw activations."""
        return self.decode(self.encode(x))


def _numbers(activation: Activation) -> list[nn.Parameter]:
    """The activation's own numbers per latent, as parameters that move with the module."""
    return [
        nn.Parameter(value.float(), requires_grad=False)
        for value in vars(activation).values()
        if torch.is_tensor(value)
    ]


def _in_units_of_rows(folded: Folded) -> Folded:
    """The same SAE with decoder rows of unit norm, as SAEBench wants them: all latents times the norm that rows have.

    One factor for all leaves the order of latents as it is. Rows of several norms stay as they are.
    """
    norm_S = torch.linalg.vector_norm(folded.W_dec_SD, dim=1)
    norm = norm_S.mean()
    if not ((norm_S / norm - 1).abs() < ONE_NORM).all():
        return folded
    match folded.activation:
        case Threshold(threshold_S):
            activation: Activation = Threshold(threshold_S * norm)
        case Gate(scale_S, offset_S):
            activation = Gate(scale_S, offset_S * norm)
        case _:
            activation = folded.activation
    W_enc_SD, b_enc_S = folded.W_enc_SD * norm, folded.b_enc_S * norm
    return Folded(W_enc_SD, b_enc_S, folded.W_dec_SD / norm, folded.b_dec_D, activation)


def bench_sae(
    folded: Folded,
    hookpoint: str,
    *,
    model_name: str,
    model_type: str | None = None,
    context_length: int = 128,
    prepend_bos: bool = True,
) -> BenchSAE:
    """The object for one hookpoint of a model that TransformerLens knows by `model_name`.

    Its decoder rows have unit norm, so that latents are those of the suite divided by the hookpoint's scale. Raises
    HookpointError for a place that TransformerLens does not name.
    """
    folded = _in_units_of_rows(folded)
    d_sae, d_model = folded.W_enc_SD.shape
    config = BenchConfig(
        model_name=model_name,
        d_in=d_model,
        d_sae=d_sae,
        hook_layer=layer_index(hookpoint),
        hook_name=to_transformer_lens(hookpoint, model_type),
        architecture=ARCHITECTURES.get(type(folded.activation), "standard"),
        context_size=context_length,
        prepend_bos=prepend_bos,
        dtype="float32",
        device=str(folded.W_enc_SD.device),
    )
    config.architecture_str = config.architecture
    if isinstance(folded.activation, TopK):
        config.activation_fn_str, config.activation_fn_kwargs = "topk", {"k": folded.activation.k}
    return BenchSAE(folded, config)
