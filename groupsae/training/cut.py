"""A dictionary that is cut by latents over several ranks: each holds some rows of both matrices, and their moments.

Every piece sees the same batch. Candidates for the largest pre-activations are gathered, so that all pieces agree on
which of them fire, ties to the lower latent; partial reconstructions are summed. What is not cut, b_dec and thresholds
common to all latents, has the same bits on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from groupsae.distributed.ranks import Ranks
from groupsae.training.microbatch import StepResult

CUT_TENSORS = ("W_enc", "b_enc", "W_dec", "log_threshold")
"""The parameters of an SAE that have a row, or a number, for each latent."""


@dataclass(frozen=True)
class Cut:
    """This rank's piece of a dictionary: the ranks that share it, and the latents of each."""

    ranks: Ranks
    slices: tuple[slice, ...]

    @property
    def own(self) -> slice:
        """The latents of this rank."""
        return self.slices[self.ranks.rank]

    @property
    def size(self) -> int:
        """How many they are."""
        return self.own.stop - self.own.start

    @property
    def label(self) -> str:
        """Which piece it is, as part of a file's name: `part-1-of-2`."""
        return f"part-{self.ranks.rank + 1}-of-{self.ranks.size}"

    # ---- in a step

    def summed(self, part: Tensor) -> Tensor:
        """The sum of all ranks' parts. Its gradient is each part's."""
        return _Summed.apply(part, self.ranks)

    def copied(self, shared: Tensor) -> Tensor:
        """A tensor that all ranks have. Its gradient is the sum of what each rank's own latents give it."""
        return _Copied.apply(shared, self.ranks)

    @torch.no_grad()
    def among_largest(self, values_NK: Tensor, most: int) -> Tensor:
        """True for this rank's candidates (N, K) that are among the `most` largest of all ranks, for each token.

        Candidates stand in the order of their latents, so that of equal ones the lower latents are taken.
        """
        padded_NM = values_NK.new_full((len(values_NK), most), -torch.inf)
        padded_NM[:, : values_NK.shape[1]] = values_NK
        all_NQM = torch.cat(self.ranks.all_gather(padded_NM), dim=1)
        first_NM = all_NQM.sort(dim=1, descending=True, stable=True).indices[:, :most]
        chosen_NQM = torch.zeros_like(all_NQM, dtype=torch.bool).scatter_(1, first_NM, True)
        start = self.ranks.rank * most
        return chosen_NQM[:, start : start + values_NK.shape[1]]

    @torch.no_grad()
    def cutoff(self, values: Tensor, wanted: int) -> Tensor:
        """What the `wanted` largest of all ranks' values are at least: halfway to the first that is not among them.

        -inf where there are no more than that.
        """
        own = values.flatten().topk(min(wanted + 1, values.numel())).values
        padded = values.new_full((wanted + 1,), -torch.inf)
        padded[: len(own)] = own
        largest = torch.cat(self.ranks.all_gather(padded)).topk(wanted + 1).values
        return largest[wanted - 1 :].mean()

    def total(self, count: int) -> int:
        """The sum of a count over the ranks."""
        return sum(self.ranks.gather(count))

    def merged(self, result: StepResult) -> StepResult:
        """What a step cost, with the activity of all pieces; which latents fired is known of this piece's own only."""
        activity = result.activity
        told = self.ranks.all_gather(torch.stack([activity.active.double(), activity.cutoff.double()]))
        active, cutoff = sum(one[0] for one in told), torch.stack([one[1] for one in told]).amin()
        whole = replace(activity, active=active.long(), cutoff=cutoff.to(activity.cutoff.dtype))
        return replace(result, activity=whole)

    def share(self, mask_S: Tensor) -> Tensor:
        """The share of all latents for which a mask of this piece's own is true."""
        return self.ranks.add(mask_S.sum().double()) / self.slices[-1].stop

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The norm of all pieces' gradients, each number counted once."""
        own = [gradient for name, gradient in gradients.items() if name in CUT_TENSORS]
        shared = [gradient for name, gradient in gradients.items() if name not in CUT_TENSORS]
        squares = self.ranks.add(torch.stack([g.double().square().sum() for g in own]).sum())
        return (squares + sum(g.double().square().sum() for g in shared)).sqrt().float()

    # ---- tensors by name

    def piece(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a whole dictionary's tensors, what this rank holds."""
        return {name: tensor[self.own] if is_cut(name) else tensor for name, tensor in tensors.items()}

    def joined(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole dictionary's tensors, on the CPU, from the pieces of all ranks."""
        told = self.ranks.gather_tensors([(list(tensors), list(tensors.values()))])
        return join([dict(zip(names, theirs, strict=True)) for ((names, theirs),) in told])


def is_cut(name: str) -> bool:
    """Whether the tensor of this name, in an SAE or in a group's state, has a row for each latent."""
    return name == "silent" or (not name.endswith(".step") and any(part in CUT_TENSORS for part in name.split(".")))


def join(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The whole dictionary's tensors, from those of all pieces in order."""
    return {
        name: torch.cat([piece[name] for piece in pieces]) if is_cut(name) else tensor
        for name, tensor in pieces[0].items()
    }


class _Summed(Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        return ranks.add(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Copied(Function):
    @staticmethod
    def forward(ctx: Any, shared: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return shared.view_as(shared)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.add(grad), None
