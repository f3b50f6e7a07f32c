"""What a circuit does alone, and what the model does without it.

m is a task's logit difference, clean answer less patched answer. For a set C of latents:

    faithfulness(C)  = (m(C)  - m(empty)) / (m(full) - m(empty))      latents outside C are ablated
    completeness(C)  = (m(~C) - m(empty)) / (m(full) - m(empty))      latents inside C are ablated

(Marks et al. 2024, arXiv 2403.19647; as Group-SAE measures it), each m being the mean over test
prompts. m(full) is the untouched model, m(empty) has every latent ablated. SAEs stand at all
hookpoints of the suite at once. Each is measured twice: with the SAEs' errors kept, where the full
set gives 1 whatever the SAEs, and with them removed, where it gives what the latents alone can do
(`ceiling`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from groupsae.evaluation.circuits.nodes import NodeSet
from groupsae.evaluation.circuits.prompts import Prompts
from groupsae.evaluation.circuits.spliced import Latents, SplicedModel

Means = dict[int, Latents]
"""Mean latents (T, S) by hookpoint, for each length of prompts."""


def mean_latents(spliced: SplicedModel, prompts: Sequence[Prompts]) -> Means:
    """The mean latents of clean prompts at every position, by length: what `mean` ablation sets latents to."""
    means: Means = {}
    for one in prompts:
        sums: Latents = {}
        for portion in spliced.portions(one):
            for name, latents_PTS in spliced.latents(portion.clean_PT).items():
                sums[name] = sums.get(name, 0) + latents_PTS.sum(0)
        means[one.clean_PT.shape[1]] = {name: sum_TS / len(one) for name, sum_TS in sums.items()}
    return means


class Ablation:
    """Runs the model on test prompts with the latents outside a set ablated.

    Latents are set to their mean over the clean prompts that means were taken of, or, without means, to
    their value on each prompt's own patched form.
    """

    def __init__(self, spliced: SplicedModel, prompts: Sequence[Prompts], means: Means | None) -> None:
        self._spliced = spliced
        self._portions = [part for one in prompts for part in spliced.portions(one)]
        self._means = means

    @torch.no_grad()
    def __call__(self, nodes: NodeSet, *, keep_error: bool) -> Tensor:
        """m on each prompt with every latent outside `nodes` ablated, (P,), float64."""
        parts = []
        for portion in self._portions:
            values = self._values(portion)

            def edit(name: str, f_PTS: Tensor, values: Latents = values) -> Tensor:
                return torch.where(nodes[name].to(f_PTS.device), f_PTS, values[name])

            logits = self._spliced.logits(portion.clean_PT, edit, keep_error=keep_error)
            parts.append(portion.logit_difference(logits))
        return torch.cat(parts).cpu()

    def _values(self, portion: Prompts) -> Latents:
        if self._means is None:
            return self._spliced.latents(portion.patch_PT)
        return self._means[portion.clean_PT.shape[1]]
