"""How well SAEs reconstruct activations they have not seen, in the model's own units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from groupsae.activations.source import ActivationSource, stream
from groupsae.errors import NumericalError, TextError
from groupsae.evaluation.subjects import Subject, by_suite, subjects
from groupsae.saes.suite import BoundSAE, Suite


@dataclass(frozen=True)
class Reconstruction:
    """How one SAE reconstructs one hookpoint.

    fvu           sum ||x - x_hat||^2 / sum ||x - mean x||^2, mean over the evaluation set, raw units, >= 0
    cosine        mean over tokens of cos(x, x_hat), in [-1, 1]
    l0            mean number of active latents per token
    dead_share    share of the SAE's latents that fire on no evaluated token at any hookpoint it serves
    silent_share  share of the SAE's latents that fire on no evaluated token at this hookpoint
    """

    fvu: float
    cosine: float
    l0: float
    dead_share: float
    silent_share: float


UNITS = {
    "fvu": "ratio",
    "cosine": "cosine",
    "l0": "latents per token",
    "dead_share": "share of latents",
    "silent_share": "share of latents",
}


def evaluate_reconstruction(
    suite: Suite, source: ActivationSource, num_tokens: int, *, seed: int = 0
) -> dict[str, Reconstruction]:
    """Each hookpoint's `Reconstruction` on `num_tokens` tokens of a source, which should be held out."""
    return evaluate_reconstructions({"suite": suite}, source, num_tokens, seed=seed)["suite"]


@torch.no_grad()
def evaluate_reconstructions(
    suites: Mapping[str, Suite],
    source: ActivationSource,
    num_tokens: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Reconstruction]]:
    """The same for several suites, all on the same tokens: results by suite and hookpoint.

    Sums are float64 over all tokens before any division, so results do not depend on batches.
    Raises TextError if the source holds no token, NumericalError if a hookpoint does not vary: FVU is
    then undefined.
    """
    pairs = subjects(suites)
    sums = {subject: _Sums(bound) for subject, bound in pairs.items()}
    layers = {hookpoint: index for index, hookpoint in enumerate(source.hookpoints)}
    spread = _Spread(source)
    for x_LND in stream(source, num_tokens, seed) if source.num_rows else ():
        spread.add(x_LND)
        for subject, bound in pairs.items():
            sums[subject].add(bound, x_LND[layers[subject.hookpoint]].float())
        if progress:
            progress(x_LND.shape[1])
    if not spread.count:
        raise TextError("No held-out token is left to evaluate on; give more text or a larger held_out_share.")
    variances = dict(zip(source.hookpoints, spread.total_variance().tolist(), strict=True))
    constant = [subject.hookpoint for subject in pairs if not variances[subject.hookpoint] > 0]
    if constant:
        raise NumericalError(
            f"The {spread.count} evaluated token(s) are all the same at {', '.join(dict.fromkeys(constant))}, so the "
            "fraction of variance unexplained is undefined; evaluate on more tokens."
        )
    results = {
        subject: part.result(variances[subject.hookpoint], _fired_anywhere(sums, subject))
        for subject, part in sums.items()
    }
    return by_suite(suites, results)


class _Spread:
    """Sums that give each layer's total variance about its mean."""

    def __init__(self, source: ActivationSource) -> None:
        layers = len(source.hookpoints)
        self.count = 0
        self.sum_LD = torch.zeros(layers, source.d_model, dtype=torch.float64, device=source.device)
        self.squares_L = torch.zeros(layers, dtype=torch.float64, device=source.device)

    def add(self, x_LND: Tensor) -> None:
        x_LND = x_LND.double()
        self.count += x_LND.shape[1]
        self.sum_LD += x_LND.sum(1)
        self.squares_L += x_LND.square().sum((1, 2))

    def total_variance(self) -> Tensor:
        """sum_t ||x_t - mean||^2 of each layer, (L,); zero where it is no more than rounding."""
        variance_L = self.squares_L - self.sum_LD.square().sum(1) / self.count
        return variance_L.where(variance_L > 1e-13 * self.squares_L, 0)


class _Sums:
    """Sums over tokens for one SAE at one hookpoint, and which latents have fired."""

    def __init__(self, bound: BoundSAE) -> None:
        device = bound.sae.W_enc.device
        self.count = 0
        self.error, self.cosine, self.active = torch.zeros(3, dtype=torch.float64, device=device)
        self.fired_S = torch.zeros(bound.sae.d_sae, dtype=torch.bool, device=device)

    def add(self, bound: BoundSAE, x_ND: Tensor) -> None:
        latents = bound.encode_sparse(x_ND)
        x_hat_ND = bound.decode_sparse(latents, x_ND)
        self.count += len(x_ND)
        self.error += (x_ND - x_hat_ND).double().square().sum()
        self.cosine += torch.cosine_similarity(x_ND.double(), x_hat_ND.double(), dim=1).sum()
        self.active += (latents.values_NK > 0).sum()
        self.fired_S |= latents.fired(bound.sae.d_sae)

    def result(self, variance: float, fired_anywhere_S: Tensor) -> Reconstruction:
        return Reconstruction(
            fvu=self.error.item() / variance,
            cosine=self.cosine.item() / self.count,
            l0=self.active.item() / self.count,
            dead_share=1 - fired_anywhere_S.double().mean().item(),
            silent_share=1 - self.fired_S.double().mean().item(),
        )


def _fired_anywhere(sums: Mapping[Subject, _Sums], of: Subject) -> Tensor:
    same_sae = (part for subject, part in sums.items() if (subject.suite, subject.group) == (of.suite, of.group))
    return torch.stack([part.fired_S for part in same_sae]).any(0)
