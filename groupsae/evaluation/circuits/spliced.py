"""A model with a suite's SAEs at all of its hookpoints at once: what the latents are, and setting them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from groupsae.activations.harvest import Harvester
from groupsae.evaluation.circuits.prompts import Prompts
from groupsae.evaluation.splice import CleanPass, edited_logits
from groupsae.saes.suite import BoundSAE, Suite

LATENTS_AT_ONCE = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Dense latents of all hookpoints together that are worked on at once; attribution holds them five times."""

Latents = dict[str, Tensor]
"""Dense latents (P, T, S) by hookpoint."""


class KeptPositions:
    """Where SAEs stand in prompts: True (P, T) at the positions that a source does not leave out.

    Norms are those of the untouched model. Each set of prompts is read once, and remembered.
    """

    def __init__(self, source: Harvester) -> None:
        self._source = source
        self._known: dict[tuple[torch.Size, bytes], Tensor] = {}

    def __call__(self, ids_PT: Tensor) -> Tensor:
        if not self._source.skip_special:
            return torch.ones_like(ids_PT, dtype=torch.bool)
        key = ids_PT.shape, ids_PT.cpu().numpy().tobytes()
        if key not in self._known:
            self._known[key] = ~self._source.left_out_of(ids_PT)
        return self._known[key]


class SplicedModel:
    """A language model and the SAEs of a suite, at every hookpoint that the suite serves.

    `keep(ids)` says at which positions SAEs stand; elsewhere (special tokens, outliers) x passes untouched.
    """

    def __init__(self, model: nn.Module, suite: Suite, keep: Callable[[Tensor], Tensor]) -> None:
        self.model, self.keep = model, keep
        self.saes: dict[str, BoundSAE] = {name: suite[name] for name in suite.partition.hookpoints}

    def portions(self, prompts: Prompts) -> Iterator[Prompts]:
        """The prompts, few enough at once for their latents to be held."""
        latents = prompts.clean_PT.shape[1] * sum(bound.sae.d_sae for bound in self.saes.values())
        limit = LATENTS_AT_ONCE.get(prompts.clean_PT.device.type, LATENTS_AT_ONCE["cuda"])
        yield from prompts.split(max(1, limit // latents))

    @torch.no_grad()
    def latents(self, ids_PT: Tensor) -> Latents:
        """The latents of the untouched model, zero where no SAE stands."""
        keep_PT1 = self.keep(ids_PT)[..., None]
        hidden = CleanPass(self.model, ids_PT, tuple(self.saes)).hidden
        return {name: bound.encode(hidden[name]) * keep_PT1 for name, bound in self.saes.items()}

    def logits(self, ids_PT: Tensor, edit: Callable[[str, Tensor], Tensor], *, keep_error: bool) -> Tensor:
        """The logits with every hookpoint's latents f (P, T, S) replaced by f' = edit(hookpoint, f).

        x becomes decode(f') + error, the error x - decode(f) being kept, or left out. Both f and the error
        are those of the x that the hookpoints below have changed.
        """
        keep_PT1 = self.keep(ids_PT)[..., None]

        def splice(name: str, bound: BoundSAE) -> Callable[[Tensor], Tensor]:
            def change(x_PTD: Tensor) -> Tensor:
                f_PTS = bound.encode(x_PTD)
                edited_PTS = edit(name, f_PTS)
                if keep_error:
                    changed_PTD = x_PTD + (bound.decode(edited_PTS) - bound.decode(f_PTS))
                else:
                    changed_PTD = bound.decode(edited_PTS)
                return torch.where(keep_PT1, changed_PTD, x_PTD.to(changed_PTD.dtype))

            return change

        edits = {name: splice(name, bound) for name, bound in self.saes.items()}
        return edited_logits(self.model, ids_PT, edits)
