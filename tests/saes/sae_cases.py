"""The TopK SAE as its formulas say it, token by token in float64; and small SAEs to compare with it."""

import torch
from torch import nn

from groupsae.config import TopKConfig
from groupsae.saes.topk import TopKSAE

D_MODEL, D_SAE, K = 16, 40, 5
K_AUX = D_MODEL // 2
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def random_sae(seed=0, **options):
    """A TopK SAE in float64 whose four weights are all random, the decoder rows of unit norm."""
    sae = TopKSAE(D_MODEL, TopKConfig(d_sae=D_SAE, **{"k": K} | options)).double()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in WEIGHTS:
            parameter = getattr(sae, name)
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) / 2)
    sae.normalize_decoder()
    return sae


def random_batch(seed=1, tokens=30):
    """A batch (N, D) in float64 whose mean is not zero."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, D_MODEL, generator=random, dtype=torch.float64) + 0.5


def dead(*latents):
    """A mask (S,) of these latents."""
    mask_S = torch.zeros(D_SAE, dtype=torch.bool)
    mask_S[list(latents)] = True
    return mask_S


def copies(sae):
    """The weights of an SAE as leaves of their own graph."""
    return {name: nn.Parameter(getattr(sae, name).detach().clone()) for name in WEIGHTS}


def naive_losses(weights, z_ND, k, dead_S, auxk_weight):
    """(total, auxk, L0) by loops over tokens and latents: the definition in METHOD's section on training."""
    W_enc, b_enc, W_dec, b_dec = (weights[name] for name in WEIGHTS)
    mean_D = z_ND.mean(0)
    dead_latents = [s for s in range(len(b_enc)) if dead_S[s]]
    error = variance = auxk = torch.zeros((), dtype=z_ND.dtype)
    fired = 0
    for z_D in z_ND:
        pre_S = torch.stack([W_enc[s] @ (z_D - b_dec) + b_enc[s] for s in range(len(b_enc))])
        strongest = sorted(range(len(b_enc)), key=lambda s: -pre_S[s].item())[:k]
        z_hat_D = b_dec
        for s in strongest:
            if pre_S[s] > 0:
                z_hat_D = z_hat_D + pre_S[s] * W_dec[s]
                fired += 1
        error = error + ((z_hat_D - z_D) ** 2).sum()
        variance = variance + ((z_D - mean_D) ** 2).sum()
        residual_D = (z_D - z_hat_D).detach()
        strongest_dead = sorted(dead_latents, key=lambda s: -pre_S[s].item())[:K_AUX]
        if strongest_dead:
            e_hat_D = sum(pre_S[s] * W_dec[s] for s in strongest_dead)
            auxk = auxk + ((e_hat_D - residual_D) ** 2).sum()
    auxk = min(len(dead_latents) / K_AUX, 1) * auxk / variance
    return error / variance + auxk_weight * auxk, auxk, fired / len(z_ND)
