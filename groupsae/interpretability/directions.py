"""What a latent's decoder row says by itself: the tokens it promotes and suppresses, and the rows most like it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupsae.model_structure import base_model, find_blocks
from groupsae.saes.suite import BoundSAE

ROWS_AT_ONCE = 256
"""Decoder rows that are compared with all others, or with the vocabulary, at once."""


@dataclass(frozen=True)
class Unembedding:
    """From directions in the residual stream to logits: the model's final norm, then its output embedding.

    norm_name  the module of the final norm below the base model; None where the model has none
    """

    W_VD: Tensor
    norm: nn.Module | None
    norm_name: str | None

    @classmethod
    def of(cls, model: nn.Module) -> Unembedding | None:
        """Those of a causal LM; None for a model without an output embedding."""
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None:
            return None
        name, norm = _final_norm(model)
        return cls(head.weight.detach().float(), None if norm is None else copy.deepcopy(norm).float(), name)

    @torch.no_grad()
    def residual(self, direction_SD: Tensor) -> Tensor:
        """Directions after the final norm (S, D), without its bias; each is given norm sqrt(D) before it."""
        scaled_SD = F.normalize(direction_SD, dim=-1) * direction_SD.shape[-1] ** 0.5
        if self.norm is None:
            return scaled_SD
        return self.norm(scaled_SD) - self.norm(torch.zeros_like(scaled_SD[:1]))

    def strongest(self, direction_SD: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids and logits of the tokens that each direction promotes most, and of those it suppresses most (S, most)."""
        parts = []
        for rows_RD in self.residual(direction_SD).split(ROWS_AT_ONCE):
            logits_RV = rows_RD @ self.W_VD.T
            high, low = (logits_RV.topk(min(most, len(self.W_VD)), largest=largest) for largest in (True, False))
            parts.append((high.indices, high.values, low.indices, low.values))
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _final_norm(model: nn.Module) -> tuple[str | None, nn.Module | None]:
    """The last norm beside the blocks, by its path below the base model."""
    owner = find_blocks(model)[0].rpartition(".")[0]
    children = base_model(model).get_submodule(owner).named_children()
    found = [(name, child) for name, child in children if "norm" in type(child).__name__.lower()]
    return found[-1] if found else (None, None)


def directions(bound: BoundSAE) -> Tensor:
    """The decoder rows of an SAE as directions at its hookpoint (S, D)."""
    W_SD = bound.sae.W_dec.detach().float()
    return W_SD if bound.maps is None else bound.maps.from_group(W_SD, bound.layer)


@torch.no_grad()
def nearest(
    one_SD: Tensor, other_SD: Tensor, most: int, *, among_S: Tensor, same: bool = False
) -> tuple[Tensor, Tensor]:
    """For each row of `one` the rows of `other` with the largest cosine: numbers and cosines (S, most).

    Only rows of `other` that `among_S` marks count; -1 and 0 where there are not as many. `same`: the two are one
    matrix, and a row is not its own neighbor.
    """
    other_SD = F.normalize(other_SD, dim=1)
    found = []
    for first, rows_RD in enumerate(F.normalize(one_SD, dim=1).split(ROWS_AT_ONCE)):
        cosine_RS = (rows_RD @ other_SD.T).masked_fill(~among_S, -2.0)
        if same:
            row = torch.arange(len(rows_RD), device=cosine_RS.device)
            cosine_RS[row, row + first * ROWS_AT_ONCE] = -2.0
        found.append(cosine_RS.topk(min(most, len(other_SD)), dim=1))
    cosine_SK, index_SK = (torch.cat([getattr(part, name) for part in found]) for name in ("values", "indices"))
    none_SK = cosine_SK < -1.5
    return _padded(index_SK.masked_fill(none_SK, -1), most, -1), _padded(cosine_SK.masked_fill(none_SK, 0.0), most, 0.0)


def _padded(found_SK: Tensor, most: int, fill: float) -> Tensor:
    return F.pad(found_SK, (0, most - found_SK.shape[1]), value=fill)
