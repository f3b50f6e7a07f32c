"""How much each latent matters for a task, to first order: attribution patching.

    m         = logit(clean answer) - logit(patched answer), after the last position of the clean prompt
    effect_i  = mean over prompts of sum over positions of (f_patch - f_clean)_i * dm/df_i

f are a hookpoint's latents on the clean and on the patched prompt. So an effect says how m would
change if the latent took its patched value (Nanda 2023; on SAE latents Marks et al. 2024, arXiv
2403.19647). Each f is a leaf beside what it was read from:

    x' = x + decode(f) - (decode(f), held constant)

The model's computation is left as it is, and a gradient passes once through every hookpoint: dx'/dx is
the identity, whatever the SAE. (Passing it through the SAE and past it doubles it at each layer.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from groupsae.evaluation.circuits.prompts import Prompts
from groupsae.evaluation.circuits.spliced import Latents, SplicedModel
from groupsae.evaluation.splice import CleanPass, edited_logits
from groupsae.saes.suite import BoundSAE

Effects = dict[str, Tensor]
"""The effect of each latent (S,), float64, by hookpoint."""


def attribute(
    spliced: SplicedModel,
    prompts: Sequence[Prompts],
    method: Literal["gradient", "integrated"] = "gradient",
    steps: int = 10,
) -> Effects:
    """The effect of every latent of every hookpoint on the task's m, in logits, over all prompts.

    `gradient` takes dm/df at the clean prompt, for all hookpoints in one pass. `integrated` takes its mean
    at `steps` midpoints between the clean and the patched latents, one hookpoint at a time: the effects of a
    hookpoint then sum to what patching it whole does to m, up to the error of the midpoint rule.
    """
    totals = {name: torch.zeros(bound.sae.d_sae, dtype=torch.float64) for name, bound in spliced.saes.items()}
    for portion in (part for one in prompts for part in spliced.portions(one)):
        clean, patch = spliced.latents(portion.clean_PT), spliced.latents(portion.patch_PT)
        if method == "gradient":
            gradients = _gradients(spliced, portion)
        else:
            gradients = _mean_gradients(spliced, portion, clean, patch, steps)
        for name, total in totals.items():
            total += ((patch[name] - clean[name]) * gradients[name]).sum((0, 1), dtype=torch.float64).cpu()
    count = sum(map(len, prompts))
    return {name: total / count for name, total in totals.items()}


@torch.enable_grad()
def _gradients(spliced: SplicedModel, prompts: Prompts) -> Latents:
    """dm/df (P, T, S) of every hookpoint, at the clean prompts."""
    leaves: Latents = {}
    keep_PT1 = spliced.keep(prompts.clean_PT)[..., None]

    def splice(name: str, bound: BoundSAE) -> Callable[[Tensor], Tensor]:
        def change(x_PTD: Tensor) -> Tensor:
            leaves[name] = bound.encode(x_PTD.detach()).detach().requires_grad_()
            return x_PTD + _nothing(bound, leaves[name]) * keep_PT1

        return change

    edits = {name: splice(name, bound) for name, bound in spliced.saes.items()}
    m_P = prompts.logit_difference(edited_logits(spliced.model, prompts.clean_PT, edits))
    return dict(zip(leaves, torch.autograd.grad(m_P.sum(), list(leaves.values())), strict=True))


def _nothing(bound: BoundSAE, latents: Tensor) -> Tensor:
    """Zero, with the gradient of the decoder."""
    decoded = bound.decode(latents)
    return decoded - decoded.detach()


def _mean_gradients(spliced: SplicedModel, prompts: Prompts, clean: Latents, patch: Latents, steps: int) -> Latents:
    """dm/df (P, T, S) of every hookpoint, the mean over the midpoints of `steps` parts of the way."""
    keep_PT1 = spliced.keep(prompts.clean_PT)[..., None]
    with torch.no_grad():
        run = CleanPass(spliced.model, prompts.clean_PT, tuple(spliced.saes))
    sums: Latents = {}
    for name, bound in spliced.saes.items():
        before_PTD = bound.decode(clean[name])
        for step in range(steps):
            leaf = torch.lerp(clean[name], patch[name], (step + 0.5) / steps).requires_grad_()
            with torch.enable_grad():
                x_PTD = run.hidden[name] + (bound.decode(leaf) - before_PTD) * keep_PT1
                m_P = prompts.logit_difference(run.spliced(name, x_PTD))
                (gradient,) = torch.autograd.grad(m_P.sum(), leaf)
            sums[name] = sums.get(name, 0) + gradient / steps
    return sums
