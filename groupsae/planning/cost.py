"""What a run costs in FLOPs: the papers' count, and ours of what is really computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from groupsae.errors import ConfigError
from groupsae.hookpoints import layer_index
from groupsae.partition import Group
from groupsae.planning.architecture import Architecture


@dataclass(frozen=True)
class Cost:
    """FLOPs of a run by part: `harvest` (the language model) and `training` (the SAEs).

    `lm_tokens` tokens go through the language model; each SAE sees `sae_tokens`, which is more where a group sees a
    token at all of its layers. Costs are compared per SAE token: what each SAE sees is what quality depends on.
    """

    harvest: float
    training: float
    lm_tokens: float
    sae_tokens: float

    @property
    def total(self) -> float:
        """All FLOPs."""
        return self.harvest + self.training

    @property
    def per_sae_token(self) -> float:
        """All FLOPs per token that each SAE sees; in millions, the papers' PFLOPs per 1e9 tokens."""
        return self.total / self.sae_tokens


def paper_cost(
    architecture: Architecture, num_groups: int, d_sae: int, context_length: int = 1024, num_tokens: int = 1
) -> Cost:
    """The published cost of `num_groups` SAEs: C(G) = A + T G FLOPs per token.

        A = 24 L D^2 + 4 L T_ctx D      the language model's forward pass, all L blocks, no head
        T = 10 D S                      one dense TopK step

    (Group-SAE, arXiv 2410.21508; their tables round A and T to 0.01 PFLOP per 1e9 tokens before adding.)
    One SAE per layer, the last left out, is num_groups = L - 1. Holds for models with an MLP of 4 D;
    others are counted by `Architecture.forward_flops`. Raises ConfigError for numbers below 1.
    """
    _require_positive(num_groups=num_groups, d_sae=d_sae, context_length=context_length, num_tokens=num_tokens)
    harvest = architecture.forward_flops(context_length)
    training = num_groups * dense_step_flops(architecture.d_model, d_sae)
    return Cost(harvest * num_tokens, training * num_tokens, num_tokens, num_tokens)


def dense_step_flops(d_model: int, d_sae: int) -> int:
    """FLOPs per token of a dense SAE step, 10 D S: five products, encoder 2 and decoder 3."""
    return 10 * d_model * d_sae


def sparse_step_flops(d_model: int, d_sae: int, k: int) -> int:
    """FLOPs per token of a step whose only dense product is the encoder's: 2 D S + 8 D K.

    K is the mean number of active latents. Steps with most latents active, as some SAEs' first, cost
    `dense_step_flops`; a Gated SAE's second decoder adds 4 D K.

    Decoding, the gradient of the latents and both weight gradients touch K rows each. Selection,
    auxiliary loss, normalization and Adam are left out: they are bytes rather than FLOPs.
    """
    return 2 * d_model * d_sae + 8 * d_model * k


def run_cost(
    architecture: Architecture,
    groups: Sequence[Group],
    step_flops: int,
    num_tokens: int,
    context_length: int,
    layers_per_token: int | str = 1,
) -> Cost:
    """What training these groups in one pass costs, each SAE seeing `num_tokens` activations.

    A group takes one activation from each token (`layers_per_token` = 1, as published), or one from
    each of its layers ("all"): a group of |g| layers then needs num_tokens / |g| tokens. Groups that
    have enough stop, and blocks above the deepest hookpoint still needed are not run:

        harvest = sum over stretches of text (tokens * FLOPs of the blocks up to the deepest unfinished group)
        training = G * num_tokens * step_flops

    `step_flops` is `sparse_step_flops` or `dense_step_flops`. To train a baseline in the same pass,
    add its groups. Raises ConfigError for numbers below 1, no group, or a hookpoint deeper than the model.
    """
    _require_positive(step_flops=step_flops, num_tokens=num_tokens, context_length=context_length)
    if layers_per_token not in (1, "all"):
        raise ConfigError(f"layers_per_token = {layers_per_token!r}; it must be 1 or 'all'.")
    groups = list(dict.fromkeys(groups))
    needs = sorted(
        (num_tokens / (len(group) if layers_per_token == "all" else 1), _blocks_needed(architecture, group))
        for group in groups
    )
    if not needs:
        raise ConfigError("There is no group to train; give at least one.")
    harvest, read = 0.0, 0.0
    for position, (tokens, _) in enumerate(needs):
        deepest = max(blocks for _, blocks in needs[position:])
        harvest += (tokens - read) * architecture.forward_flops(context_length, deepest)
        read = tokens
    return Cost(harvest, len(groups) * num_tokens * step_flops, read, num_tokens)


def _blocks_needed(architecture: Architecture, hookpoints: Sequence[str]) -> int:
    deepest = max(hookpoints, key=layer_index)
    blocks = layer_index(deepest) + 1
    if blocks > architecture.num_layers:
        raise ConfigError(
            f"{deepest} lies above the model's {architecture.num_layers} blocks; give its own hookpoints."
        )
    return blocks


def _require_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} = {value}; a cost needs at least 1.")
