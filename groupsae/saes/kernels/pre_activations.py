"""Pre-activations above a floor: one dense product forward, then only what was found is touched.

TopK knows beforehand how many latents each token keeps. Where a threshold decides, tokens differ: what lies
above it is a flat list of M (token, latent) pairs, in the order of the tokens. While most latents are still
active, as at the start of training, a list is slower than the products it saves, and all (N, S) are held.
Both kinds are worked with alike: elementwise functions of `values`, with `of(...)` for a parameter per latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from groupsae.saes.base import Latents
from groupsae.saes.kernels.gather import tile_rows
from groupsae.saes.layer_maps import Bias

DENSE_SHARE = 1 / 16
"""Above this share of pre-activations a list does not pay."""


def pre_activations_above(
    floor: float | Tensor, z_ND: Tensor, W_SD: Tensor, bias: Bias, most: int | None = None
) -> PreActivations:
    """Those of W z + b that are above the floor, or all; with gradients for z, W and b.

    A list is cut down to its `most` largest, and all that equal the last of them.
    """
    found = _find(floor, z_ND, W_SD, bias)
    if found is None:
        return AllPreActivations(bias.linear(z_ND, W_SD))
    tokens_M, latents_M, values_M = found
    if most is not None and most < len(values_M):
        kept_M = values_M >= values_M.kthvalue(len(values_M) - most + 1).values
        tokens_M, latents_M, values_M = tokens_M[kept_M], latents_M[kept_M], values_M[kept_M]
    places = _Places(tokens_M, latents_M, len(z_ND), len(W_SD))
    return ListedPreActivations(_Listed.apply(z_ND, W_SD, bias.rows, bias.layers_N, values_M, places), places)


class PreActivations(ABC):
    """Pre-activations of N tokens. `values` is of whatever shape suits; functions of it must be elementwise."""

    values: Tensor

    @abstractmethod
    def of(self, parameter_S: Tensor) -> Tensor:
        """A parameter per latent, in a shape that goes with `values`."""

    @abstractmethod
    def decode(self, values: Tensor, W_SD: Tensor) -> Tensor:
        """sum_s values[n, s] W[s], (N, D); `values` go with `self.values`."""

    @abstractmethod
    def decode_nested(self, values: Tensor, W_SD: Tensor, sizes: Sequence[int]) -> Tensor:
        """The same from the first `size` latents only, for each of the growing sizes: (sizes, N, D)."""

    @abstractmethod
    def latents(self, values: Tensor) -> Latents:
        """Values >= 0 that go with `self.values` as `Latents`, without gradient."""


@final
class AllPreActivations(PreActivations):
    """All of them, (N, S)."""

    def __init__(self, values_NS: Tensor) -> None:
        self.values = values_NS

    def of(self, parameter_S: Tensor) -> Tensor:
        """The parameter itself (S,), which goes with (N, S)."""
        return parameter_S

    def decode(self, values: Tensor, W_SD: Tensor) -> Tensor:
        """A product."""
        return values @ W_SD

    def decode_nested(self, values: Tensor, W_SD: Tensor, sizes: Sequence[int]) -> Tensor:
        """A product per stretch between two sizes, added up."""
        edges = zip((0, *sizes[:-1]), sizes, strict=True)
        return torch.stack([values[:, low:high] @ W_SD[low:high] for low, high in edges]).cumsum(0)

    def latents(self, values: Tensor) -> Latents:
        """All of them in their order: K is S."""
        return Latents(values.detach(), torch.arange(values.shape[1], device=values.device).expand(values.shape))


@final
class ListedPreActivations(PreActivations):
    """Those above the floor, (M,)."""

    def __init__(self, values_M: Tensor, places: _Places) -> None:
        self.values, self._places = values_M, places

    def of(self, parameter_S: Tensor) -> Tensor:
        """The parameter of each listed latent, (M,)."""
        return parameter_S[self._places.latents_M]

    def decode(self, values: Tensor, W_SD: Tensor) -> Tensor:
        """Only the listed rows of W are read, and get a gradient."""
        places = self._places
        return _Decode.apply(values, W_SD, places, places.starts_N, places.tokens_M)

    def decode_nested(self, values: Tensor, W_SD: Tensor, sizes: Sequence[int]) -> Tensor:
        """Each listed row is read once, into the stretch it belongs to; stretches are added up."""
        places, count = self._places, len(sizes)
        stretch_M = torch.searchsorted(torch.tensor(sizes, device=values.device), places.latents_M, right=True)
        bags_M = places.tokens_M * count + stretch_M  # growing, as latents grow within a token
        starts = _starts(bags_M, places.num_tokens * count)
        stretches = _Decode.apply(values, W_SD, places, starts, bags_M).view(places.num_tokens, count, -1)
        return stretches.cumsum(1).transpose(0, 1)

    def latents(self, values: Tensor) -> Latents:
        """What is above zero."""
        kept, places = values.detach() > 0, self._places
        return _pad(values.detach()[kept], places.tokens_M[kept], places.latents_M[kept], places.num_tokens)


class _Places:
    """Which token and which latent each of M values belongs to, and the same sorted by latent."""

    def __init__(self, tokens_M: Tensor, latents_M: Tensor, num_tokens: int, d_sae: int) -> None:
        self.tokens_M, self.latents_M = tokens_M, latents_M
        self.num_tokens, self.d_sae = num_tokens, d_sae
        self.starts_N = _starts(tokens_M, num_tokens)

    @cached_property
    def order(self) -> Tensor:
        """The places sorted by latent; within a latent, by token."""
        return self.latents_M.argsort(stable=True)

    @cached_property
    def starts_S(self) -> Tensor:
        """Where each latent's stretch of `order` begins."""
        return _starts(self.latents_M, self.d_sae)

    def by_latent(self, x_RD: Tensor, rows_M: Tensor, weights_M: Tensor) -> Tensor:
        """For each latent the sum over its places of weight times x[row], (S, D)."""
        return _bags(x_RD, rows_M[self.order], self.starts_S, weights_M[self.order])


class _Listed(Function):
    """Values that were found without a gradient, with it."""

    @staticmethod
    def forward(
        ctx: Any,
        z_ND: Tensor,
        W_SD: Tensor,
        b: Tensor,
        layers_N: Tensor | None,
        values_M: Tensor,
        places: _Places,
    ) -> Tensor:
        ctx.save_for_backward(z_ND, W_SD, b, layers_N)
        ctx.places = places
        return values_M.clone()

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        (z_ND, W_SD, b, layers_N), places = ctx.saved_tensors, ctx.places
        needs_z, needs_W, needs_b, *_ = ctx.needs_input_grad
        grad_M = grad_M.contiguous()
        grad_z_ND = _bags(W_SD, places.latents_M, places.starts_N, grad_M) if needs_z else None
        grad_W_SD = places.by_latent(z_ND, places.tokens_M, grad_M) if needs_W else None
        grad_b = Bias(b, layers_N).sums(places.tokens_M, places.latents_M, grad_M) if needs_b else None
        return grad_z_ND, grad_W_SD, grad_b, None, None, None


class _Decode(Function):
    """Sums of rows of W, each weighted by a value, in bags of consecutive values."""

    @staticmethod
    def forward(ctx: Any, values_M: Tensor, W_SD: Tensor, places: _Places, starts: Tensor, bags_M: Tensor) -> Tensor:
        with torch.enable_grad():  # PyTorch's own gradient of the weights of an embedding_bag, kept for backward
            inner_M = values_M.detach().requires_grad_()
            decoded = _bags(W_SD.detach(), places.latents_M, starts, inner_M)
        ctx.inner, ctx.places, ctx.bags_M = (inner_M, decoded), places, bags_M
        return decoded.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inner_M, decoded), places = ctx.inner, ctx.places
        grad = grad.contiguous()
        grad_M = torch.autograd.grad(decoded, inner_M, grad)[0] if ctx.needs_input_grad[0] else None
        grad_W = places.by_latent(grad, ctx.bags_M, inner_M.detach()) if ctx.needs_input_grad[1] else None
        return grad_M, grad_W, None, None, None


def _bags(W_SD: Tensor, latents_M: Tensor, starts: Tensor, values_M: Tensor) -> Tensor:
    return F.embedding_bag(latents_M, W_SD, starts, per_sample_weights=values_M, mode="sum")


@torch.no_grad()
def _find(floor: float | Tensor, z_ND: Tensor, W_SD: Tensor, bias: Bias) -> tuple[Tensor, Tensor, Tensor] | None:
    """(tokens, latents, values) above the floor, tile by tile of tokens; None where they are too many to list."""
    count, d_sae = len(z_ND), len(W_SD)
    rows = tile_rows(z_ND, d_sae)
    tile_RS, most, parts = z_ND.new_empty(rows, d_sae), DENSE_SHARE * d_sae * count, []
    for number, (z_RD, of_tile) in enumerate(zip(z_ND.split(rows), bias.split(rows), strict=False)):
        pre_RS = of_tile.add_to(torch.mm(z_RD, W_SD.T, out=tile_RS[: len(z_RD)]))
        tokens_M, latents_M = (pre_RS > floor).nonzero(as_tuple=True)
        parts.append((tokens_M + number * rows, latents_M, pre_RS[tokens_M, latents_M]))
        if sum(len(values_M) for *_, values_M in parts) > most:
            return None
    tokens_M, latents_M, values_M = (torch.cat(part) for part in zip(*parts, strict=True))
    return tokens_M, latents_M, values_M


def _starts(sorted_or_not: Tensor, length: int) -> Tensor:
    """Where each number's stretch begins once sorted."""
    counts = torch.bincount(sorted_or_not, minlength=length)
    return counts.cumsum(0) - counts


def _pad(values_M: Tensor, tokens_M: Tensor, latents_M: Tensor, num_tokens: int) -> Latents:
    """As (N, K): K is the largest number of values that a token has, the others are filled up with zeros."""
    starts_N = _starts(tokens_M, num_tokens)
    places_M = torch.arange(len(tokens_M), device=tokens_M.device) - starts_N[tokens_M]
    width = int(places_M.max()) + 1 if len(places_M) else 1
    values_NK, latents_NK = values_M.new_zeros(num_tokens, width), latents_M.new_zeros(num_tokens, width)
    values_NK[tokens_M, places_M], latents_NK[tokens_M, places_M] = values_M, latents_M
    return Latents(values_NK, latents_NK)
