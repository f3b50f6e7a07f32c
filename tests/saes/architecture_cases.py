"""Every architecture small, with random weights, and its loss as the formulas say it, in float64 and without a list."""

import torch
from sae_cases import D_MODEL, D_SAE

from groupsae.config import (
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    ReLUConfig,
    TopKConfig,
)
from groupsae.saes.registry import build_sae

K, WEIGHT, WARMUP, BANDWIDTH, AUXK_WEIGHT = 5, 0.3, 0.7, 0.8, 0.5
CONFIGS = {
    "topk": TopKConfig(d_sae=D_SAE, k=K, auxk_weight=AUXK_WEIGHT),
    "batchtopk": BatchTopKConfig(d_sae=D_SAE, k=K, auxk_weight=AUXK_WEIGHT),
    "matryoshka": MatryoshkaConfig(d_sae=D_SAE, k=K, auxk_weight=AUXK_WEIGHT, prefixes=(0.1, 0.35, 1.0)),
    "relu": ReLUConfig(d_sae=D_SAE, k=K),
    "jumprelu": JumpReLUConfig(d_sae=D_SAE, k=K, bandwidth=BANDWIDTH, auxk_weight=AUXK_WEIGHT),
    "gated": GatedConfig(d_sae=D_SAE, k=K),
}
LAYERS = [token * 7 % 11 % 3 for token in range(30)]
"""Of three layers, that of each token of a batch."""
OTHERS = [name for name in CONFIGS if name != "topk"]
STEERED = ["relu", "jumprelu", "gated"]


def random_sae_of(architecture, seed=0):
    """An SAE in float64 whose parameters are all random, decoder rows of unit norm, penalty weight `WEIGHT`."""
    sae = build_sae(D_MODEL, CONFIGS[architecture]).double()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) / 2)
        for name, buffer in sae.named_buffers():
            if name == "penalty.log_weight":
                buffer.fill_(WEIGHT).log_()
    sae.normalize_decoder()
    return sae


def leaves(sae):
    """The parameters of an SAE as leaves of their own graph."""
    return {name: parameter.detach().clone().requires_grad_() for name, parameter in sae.named_parameters()}


def naive(architecture, w, z_ND, dead_S):
    """The total loss, its gradients by name, and the dense latents (N, S)."""
    total, latents_NS, by_hand = globals()[f"_{architecture}"](w, z_ND, dead_S)
    total.backward()
    return total.detach(), {name: w[name].grad for name in w} | by_hand, latents_NS.detach()


def _pre(w, z_ND):
    pre_NS = torch.stack([torch.stack([row @ (z - w["b_dec"]) for row in w["W_enc"]]) for z in z_ND]) + w["b_enc"]
    if "bias_MS" in w:  # of its own, a layer has a row
        pre_NS = pre_NS + torch.stack([w["bias_MS"][layer] for layer in LAYERS[: len(z_ND)]])
    return pre_NS


def _variance(z_ND):
    return sum(((z - z_ND.mean(0)) ** 2).sum() for z in z_ND)


def _share(w, z_ND, latents_NS, width=D_SAE):
    """The share of variance that the first latents leave over, and the residual."""
    e_ND = z_ND - latents_NS[:, :width] @ w["W_dec"][:width] - w["b_dec"]
    return (e_ND**2).sum() / _variance(z_ND), e_ND


def _auxk(w, z_ND, pre_NS, e_ND, dead_S):
    """As METHOD's section on training has it, token by token."""
    dead, k_aux, total = dead_S.nonzero().flatten().tolist(), D_MODEL // 2, 0.0
    for pre_S, e_D in zip(pre_NS, e_ND.detach(), strict=True):
        strongest = sorted(dead, key=lambda s: -pre_S[s].item())[:k_aux]
        if strongest:
            total = total + ((sum(pre_S[s] * w["W_dec"][s] for s in strongest) - e_D) ** 2).sum()
    return min(len(dead) / k_aux, 1) * total / _variance(z_ND)


def _batch_latents(pre_NS):
    pairs = [(pre_NS[n, s].item(), n, s) for n in range(len(pre_NS)) for s in range(D_SAE)]
    kept_NS = torch.zeros_like(pre_NS)
    for value, n, s in sorted(pairs, reverse=True)[: K * len(pre_NS)]:
        kept_NS[n, s] = value > 0
    return pre_NS * kept_NS


def _batchtopk(w, z_ND, dead_S):
    pre_NS = _pre(w, z_ND)
    latents_NS = _batch_latents(pre_NS)
    share, e_ND = _share(w, z_ND, latents_NS)
    return share + AUXK_WEIGHT * _auxk(w, z_ND, pre_NS, e_ND, dead_S), latents_NS, {}


def _matryoshka(w, z_ND, dead_S):
    pre_NS = _pre(w, z_ND)
    latents_NS = _batch_latents(pre_NS)
    shares = [_share(w, z_ND, latents_NS, width)[0] for width in (4, 14, D_SAE)]
    e_ND = _share(w, z_ND, latents_NS)[1]
    return sum(shares) + AUXK_WEIGHT * _auxk(w, z_ND, pre_NS, e_ND, dead_S), latents_NS, {}


def _topk(w, z_ND, dead_S):
    pre_NS = _pre(w, z_ND)
    kept_NS = torch.zeros_like(pre_NS)
    for pre_S, kept_S in zip(pre_NS, kept_NS, strict=True):
        for s in sorted(range(D_SAE), key=lambda s: -pre_S[s].item())[:K]:
            kept_S[s] = pre_S[s] > 0
    latents_NS = pre_NS * kept_NS
    share, e_ND = _share(w, z_ND, latents_NS)
    return share + AUXK_WEIGHT * _auxk(w, z_ND, pre_NS, e_ND, dead_S), latents_NS, {}


def _relu(w, z_ND, dead_S):
    latents_NS = _pre(w, z_ND).clamp_min(0)
    return _share(w, z_ND, latents_NS)[0] + WARMUP * WEIGHT * latents_NS.sum(1).mean(), latents_NS, {}


def _gated(w, z_ND, dead_S):
    gate_NS = _pre(w, z_ND)
    sizes_NS = (gate_NS - w["b_enc"]) * w["r_mag"].exp() + w["b_mag"]
    latents_NS = (gate_NS > 0) * sizes_NS.clamp_min(0)
    frozen = w | {"W_dec": w["W_dec"].detach(), "b_dec": w["b_dec"].detach()}
    opened_NS = gate_NS.clamp_min(0)
    shares = _share(w, z_ND, latents_NS)[0] + _share(frozen, z_ND, opened_NS)[0]
    return shares + WARMUP * WEIGHT * opened_NS.sum(1).mean(), latents_NS, {}


def _jumprelu(w, z_ND, dead_S):
    """The gradient of log theta by the paper's formulas; all others by differentiating with thresholds held fixed."""
    pre_NS, theta_S = _pre(w, z_ND), w["log_threshold"].detach().exp()
    latents_NS = pre_NS * (pre_NS > theta_S)
    share, e_ND = _share(w, z_ND, latents_NS)
    slope_NS = torch.autograd.grad(share, latents_NS, retain_graph=True)[0]
    inside_NS = (pre_NS.detach() - theta_S).abs() < BANDWIDTH / 2
    penalty = WARMUP * WEIGHT / K
    by_theta_S = (inside_NS * (-theta_S / BANDWIDTH * slope_NS - penalty / BANDWIDTH / len(z_ND))).sum(0)
    total = share + penalty * (pre_NS > theta_S).sum(1).double().mean()
    total = total + AUXK_WEIGHT * _auxk(w, z_ND, pre_NS, e_ND, dead_S)
    return total, latents_NS, {"log_threshold": by_theta_S * theta_S}
