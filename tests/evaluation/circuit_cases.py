"""A model whose circuit is known, its prompts, and SAEs that lose nothing."""

import torch
from evaluation_cases import identity_suite
from tiny import tiny_model, tiny_tokenizer
from torch import nn
from torch.nn import functional as F

from groupsae.evaluation.circuits.generators import generate_pairs
from groupsae.evaluation.circuits.prompts import Prompts, by_length, tokenize_pairs
from groupsae.evaluation.circuits.spliced import SplicedModel
from groupsae.saes.scales import Scales
from groupsae.saes.suite import Suite

D_TOY, CAUSE, MOVED = 6, 0, 4
HOOKPOINTS = ("layers.0", "layers.1")
CIRCUIT = {"layers.0": {CAUSE, CAUSE + D_TOY}, "layers.1": {MOVED, MOVED + D_TOY}}
"""Latents of `toy_suite`: i stands for direction i, i + D for its opposite."""
CLEAN_ANSWER, PATCH_ANSWER = 0, 1


class Move(nn.Module):
    """Adds what stands in direction CAUSE at the first position to direction MOVED at the last."""

    def forward(self, x_BTD):
        moved = torch.zeros_like(x_BTD)
        moved[:, -1, MOVED] = x_BTD[:, 0, CAUSE]
        return x_BTD + moved


class Toy(nn.Module):
    """Token v holds v % 2 * 2 - 1 in direction CAUSE and noise in 1, 2, 3; the head reads direction MOVED."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        embedding_VD = torch.zeros(10, D_TOY)
        embedding_VD[:, 1:4] = torch.randn(10, 3, generator=random)
        embedding_VD[:, CAUSE] = torch.arange(10) % 2 * 2.0 - 1
        self.embed = nn.Embedding.from_pretrained(embedding_VD)
        self.layers = nn.ModuleList([nn.Identity(), Move()])
        head_VD = torch.zeros(10, D_TOY)
        head_VD[CLEAN_ANSWER, MOVED], head_VD[PATCH_ANSWER, MOVED] = 2.0, -1.0
        self.register_buffer("head_VD", head_VD)

    def forward(self, ids_BT):
        x_BTD = self.embed(ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD @ self.head_VD.T


def toy_prompts():
    """Odd first tokens against even ones: half of the clean prompts ask for one answer, half for the other."""
    odd_PT = torch.tensor([[1, 2, 4], [3, 2, 6], [5, 4, 2], [7, 6, 6]])
    even_PT = torch.tensor([[2, 2, 4], [4, 2, 6], [6, 4, 2], [8, 6, 6]])
    answers_P2 = torch.tensor([[CLEAN_ANSWER, PATCH_ANSWER]]).expand(4, 2)
    return Prompts(
        torch.cat([odd_PT, even_PT]), torch.cat([even_PT, odd_PT]), torch.cat([answers_P2, answers_P2.flip(1)])
    )


def uncentered(suite):
    """The same SAEs, each hookpoint with another scale and without a center."""
    scales = suite.scales
    return Suite(
        suite.partition, suite.saes, Scales(scales.hookpoints, scales.scale_L, torch.zeros_like(scales.center_LD))
    )


def toy_suite(hookpoints=HOOKPOINTS):
    """SAEs that lose nothing, a latent for each direction and for its opposite."""
    return uncentered(identity_suite(hookpoints, d_model=D_TOY))


def everywhere(ids_BT):
    """No token is special."""
    return torch.ones_like(ids_BT, dtype=torch.bool)


def spliced_toy():
    """The toy with its SAEs."""
    return SplicedModel(Toy(), toy_suite(), everywhere)


def random_prompts(vocabulary, count=6, length=7, seed=0):
    """Pairs of random ids."""
    random = torch.Generator().manual_seed(seed)
    clean_PT = torch.randint(1, vocabulary, (count, length), generator=random)
    patch_PT = clean_PT.clone()
    patch_PT[:, 2] = torch.randint(1, vocabulary, (count,), generator=random)
    return Prompts(clean_PT, patch_PT, torch.tensor([[3, 7]]).expand(count, 2))


def bracket_model(steps=60):
    """A tiny model that has learned which bracket closes."""
    model = tiny_model().requires_grad_(True)
    prompts = by_length(tokenize_pairs(generate_pairs("closing-bracket", 300, seed=9), tiny_tokenizer())[0], "cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        portion = prompts[step % len(prompts)]
        loss = F.softplus(-portion.logit_difference(model(portion.clean_PT).logits)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)
