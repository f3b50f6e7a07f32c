"""Every number that a table shows: its name, title, unit, which way is better, how it is written, formula and source.

The tables of the report and of the terminal, the headings of CSV files, the `units` in the records and
docs/metrics.md read this table. Symbols: x is an activation, y its reconstruction, f the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from groupsae.units import format_bytes, format_duration

Better = Literal["lower", "higher", "near 1", "neither"]
GROUP_SAE = "arXiv 2410.21508"
MARKS = "arXiv 2403.19647"


@dataclass(frozen=True)
class Metric:
    """A metric: its name in records and CSV files, its title in tables, and how its values are read and written."""

    name: str
    title: str
    unit: str
    better: Better
    text: Callable[[float], str]
    """Writes a value."""
    formula: str
    source: str = ""


# ---- numbers as text


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with this many decimals, two figures where that would be zero, and a true minus sign; `-` for None."""
    if value is None:
        return "-"
    if value and abs(value) < 0.5 * 10**-digits:
        text = f"{value:.1e}".replace("e-0", "e-") if abs(value) < 1e-4 else f"{float(f'{value:.1e}'):g}"
        return text.replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{fixed(100 * value, digits)}\u202f%"


def change(value: float | None, digits: int = 0) -> str:
    """A change as a percentage with its sign; no sign for what rounds to nothing."""
    if value is None:
        return "-"
    rounded = round(100 * value, digits) + 0.0
    return f"{'+' if rounded > 0 else ''}{fixed(rounded, digits) if rounded else '0'}\u202f%"


def count(value: float | None) -> str:
    """A count: written out below a million, then in millions or billions."""
    if value is None:
        return "-"
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g}\u00a0{unit}"
    return f"{value:,.0f}"


def flops(pflop: float | None) -> str:
    """A number of floating-point operations, given in PFLOP."""
    if pflop is None:
        return "-"
    for size, unit in ((1e6, "ZFLOP"), (1e3, "EFLOP"), (1.0, "PFLOP"), (1e-3, "TFLOP")):
        if pflop >= size:
            return f"{pflop / size:.3g}\u00a0{unit}"
    return f"{pflop * 1e6:.3g}\u00a0GFLOP"


def mflop(value: float | None) -> str:
    """MFLOP: one decimal from 100 on, else two."""
    return fixed(value, 1 if value is not None and value >= 100 else 2)


def decimals(digits: int) -> Callable[[float], str]:
    """Writes numbers with this many decimals."""
    return lambda value: fixed(value, digits)


def _percent(value: float) -> str:
    return percent(value, 1)


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def units(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """The units of a record, by metric."""
    return {name: metric.unit for name, metric in metrics.items()}


# ---- the table


_0, _1, _2, _3, _4 = (decimals(digits) for digits in range(5))
_NATS, _LATENTS, _SHARE = "nats per token", "latents", "share of latents"

RECONSTRUCTION = _table(
    Metric("fvu", "FVU", "ratio", "lower", _4, "sum |x - y|^2 / sum |x - mean x|^2"),
    Metric("explained_variance_per_token", "explained per token", "ratio", "higher", _3,
           "mean of 1 - |x - y|^2 / |x - mean x|^2", GROUP_SAE),
    Metric("cosine", "cosine", "cosine", "higher", _4, "mean of cos(x, y)"),
    Metric("l0", "L0", "latents per token", "neither", _1, "mean number of latents above 0"),
    Metric("l1", "L1", "sum of latents per token", "neither", _3, "mean of sum f"),
    Metric("l2_ratio", "L2 ratio", "ratio", "near 1", _3, "mean of |y| / |x|"),
    Metric("relative_reconstruction_bias", "bias", "ratio", "near 1", _3, "sum |y|^2 / sum <x, y>", "arXiv 2404.16014"),
    Metric("dead_share", "dead latents", _SHARE, "lower", _percent,
           "latents that fire on no token of any layer that the SAE serves, as a share"),
    Metric("silent_share", "silent", _SHARE, "lower", _percent, "latents that fire on no token of this layer"),
    Metric("dense_share", "dense", _SHARE, "lower", _percent, "latents that fire on more than a tenth of the tokens"),
)  # fmt: skip

LOSSES = _table(
    Metric("ce", "CE, nats", _NATS, "lower", _4, "cross-entropy of the next token with y in place of x"),
    Metric("delta_ce", "ΔCE, nats", _NATS, "lower", _4, "CE - CE_clean, one layer replaced at a time"),
    Metric("kl", "KL, nats", _NATS, "lower", _4, "mean KL(clean || spliced), one layer replaced at a time"),
    Metric("ce_score", "CE score", "ratio", "higher", _4, "(CE_zero - CE) / (CE_zero - CE_clean)"),
    Metric("kl_score", "KL score", "ratio", "higher", _3, "(KL_zero - KL) / KL_zero"),
    Metric("ce_score_mean", "CE score (mean)", "ratio", "higher", _3, "(CE_mean - CE) / (CE_mean - CE_clean)"),
    Metric("kl_score_mean", "KL score (mean)", "ratio", "higher", _3, "(KL_mean - KL) / KL_mean"),
)

CIRCUITS = _table(
    Metric("accuracy", "right", "share of prompts", "higher", percent, "clean prompts with a logit difference above 0"),
    Metric("logit_difference", "logit difference", "logits", "higher", _2, "mean m over clean prompts", MARKS),
    Metric("patch_logit_difference", "patched", "logits", "lower", _2, "mean m over patched prompts", MARKS),
    Metric("full", "whole model", "logits", "neither", _2, "mean m of the untouched model over the test prompts"),
    Metric("empty", "empty circuit", "logits", "neither", _2, "mean m with every latent ablated"),
    Metric("m", "m", "logits", "neither", _2, "mean of logit(clean answer) - logit(patched answer)", MARKS),
    Metric("weakest_effect", "weakest effect", "logits", "neither", _3, "the smallest |effect| in the circuit"),
    Metric("size", "size", "latents per hookpoint", "neither", _0, "latents asked for"),
    Metric("nodes", "nodes", _LATENTS, "neither", _0, "latents with an effect, over all hookpoints"),
    Metric("ceiling", "ceiling", "ratio", "higher", _2, "the ratio of all latents together"),
    Metric("ratio", "ratio", "ratio", "neither", _2, "(m(C) - m(empty)) / (m(full) - m(empty))", MARKS),
    Metric("median", "median", "ratio", "neither", _2, "median over prompts of each prompt's ratio"),
    Metric("area", "mean height", "mean ratio over log size", "neither", _2, "mean of the curve over log(size)"),
    Metric("area_linear", "mean height", "mean ratio over size", "neither", _2, "mean of the curve over size",
           GROUP_SAE),
)  # fmt: skip

INTERPRETATION = _table(
    Metric("balanced_accuracy", "balanced accuracy", "share of verdicts", "higher", _2,
           "(right / judged where the latent fires + right / judged where it does not) / 2", "arXiv 2410.13928"),
    Metric("firing_rate", "firing rate", "share of tokens", "neither", _4, "tokens on which the latent fires"),
)  # fmt: skip

SIMILARITY = _table(
    Metric("threshold", "threshold", "cosine", "neither", _2, "the cosine from which two rows are one latent"),
    Metric("mmcs", "MMCS", "|cosine|", "neither", _3, "mean over i of max_j |cos(a_i, b_j)|", "Sharkey et al. 2022"),
    Metric("mmcs_random", "at random", "|cosine|", "neither", _3, "MMCS with random directions for b"),
    Metric("one_in_other", "of the first", "Jaccard index", "higher", _3,
           "mean over latents of the largest |both fire| / |either fires| in the other SAE", GROUP_SAE),
    Metric("other_in_one", "of the second", "Jaccard index", "higher", _3, "the same from the other side", GROUP_SAE),
    Metric("silent_one", "first", _LATENTS, "lower", _0, "latents of the first SAE that never fire"),
    Metric("silent_other", "second", _LATENTS, "lower", _0, "latents of the second SAE that never fire"),
    Metric("entropy", "evenness", "share of the largest possible", "neither", _3,
           "mean over latents of -sum_l p_l ln p_l / ln L", GROUP_SAE),
    Metric("entropy_histogram", "evenness", _LATENTS, "neither", _0, "latents by evenness, in ten bins"),
    Metric("mean_layer", "mean layer", "layers from the group's first", "neither", _2, "mean of sum_l p_l l",
           GROUP_SAE),
    Metric("layer_histogram", "mean layer", _LATENTS, "neither", _0, "latents by rounded mean layer"),
    Metric("one_layer_share", "one layer only", _SHARE, "neither", _3, "latents that fire at one layer only"),
    Metric("firing_share", "firings", "share of firings", "neither", _3, "each layer's share of all firings"),
    Metric("silent", "silent", _LATENTS, "lower", _0, "latents that never fire"),
    Metric("share", "found again", _SHARE, "higher", _3, "pairs with a cosine of at least the threshold",
           "arXiv 2501.16615"),
    Metric("mean_cosine", "mean cosine", "cosine", "higher", _3, "mean cosine of the pairs"),
    Metric("pairs", "pairs", "pairs of latents", "neither", _0, "one-to-one pairs of rows"),
)  # fmt: skip

INTERPRETABILITY = _table(
    Metric("token_purity", "token purity", "share of values", "neither", _3,
           "share of a latent's values that lie on its most frequent token"),
    Metric("token_auroc", "AUROC of the token", "AUROC", "neither", _3,
           "how well the token alone tells, on unseen documents, where a latent fires"),
    Metric("surface_auroc", "AUROC of the surface", "AUROC", "neither", _3,
           "the same from the token, the two before it and its place in the row"),
    Metric("context_gain", "context adds", "AUROC", "neither", _3, "AUROC of the surface - AUROC of the token"),
    Metric("intruder", "intruder found", "share of trials", "higher", _3,
           "how often a window of another latent is least like four of this latent; chance 0.2"),
    Metric("following_auroc", "AUROC of what follows", "AUROC", "higher", _3,
           "chance that a promoted token follows: logits of tokens after firings against those of any tokens"),
)  # fmt: skip

COSTS = _table(
    Metric("published_mflop", "MFLOP per SAE token, published count", "10^6 FLOP per SAE token", "lower", mflop,
           "C = A + T G: one forward pass and a dense step per SAE", GROUP_SAE),
    Metric("own_mflop", "MFLOP per SAE token, our count", "10^6 FLOP per SAE token", "lower", mflop,
           "blocks that are run, and sparse steps, divided by the tokens each SAE sees"),
    Metric("seconds", "time", "seconds", "lower", format_duration, "training as if the suite was trained alone"),
    Metric("memory_bytes", "memory", "bytes", "lower", format_bytes, "peak where the SAEs are trained, predicted"),
    Metric("disk_bytes", "disk", "bytes", "lower", format_bytes, "files of the run, predicted"),
)  # fmt: skip

SUMMARY = _table(
    Metric("num_saes", "SAEs", "SAEs", "neither", _0, "one per group"),
    Metric("num_layers", "layers", "layers", "neither", _0, "hookpoints served"),
    Metric("mean_fvu", "FVU", "ratio", "lower", _4, "variance unexplained, mean over layers"),
    Metric("worst_fvu", "worst FVU", "ratio", "lower", _4, "the layer with the largest FVU"),
    Metric("mean_cosine", "cosine", "cosine", "higher", _4, "between activation and reconstruction, mean over layers"),
    Metric("mean_delta_ce", "ΔCE, nats", _NATS, "lower", _4, "loss with one layer replaced, less the clean loss"),
    Metric("worst_delta_ce", "worst ΔCE, nats", _NATS, "lower", _4, "the layer with the largest ΔCE"),
    Metric("mean_ce_score", "CE score", "ratio", "higher", _4, "1 is the clean loss, 0 the layer set to zero"),
    Metric("mean_kl", "KL, nats", _NATS, "lower", _4, "from the clean to the spliced prediction, mean over layers"),
    Metric("mean_kl_score", "KL score", "ratio", "higher", _4, "1 is the clean prediction, 0 the layer set to zero"),
    Metric("all_layers_delta_ce", "ΔCE of all layers, nats", _NATS, "lower", _4, "every layer replaced at once"),
    Metric("all_layers_kl", "KL of all layers, nats", _NATS, "lower", _4, "every layer replaced at once"),
    Metric("mean_l0", "L0", "latents per token", "neither", _1, "active latents, mean over layers"),
    Metric("mean_dead_share", "dead latents", _SHARE, "lower", _percent, "share of the dictionary, mean over layers"),
    Metric("circuit_ceiling", "circuits", "ratio", "higher", _2,
           "what all latents together do of the model's tasks, SAE errors removed"),
    Metric("mean_concordance", "concordance", "Jaccard index", "higher", _2,
           "how closely latents of each layer's own SAE are met by this suite's", GROUP_SAE),
    COSTS["published_mflop"],
    COSTS["own_mflop"],
    Metric("published_pflop", "FLOPs in all", "10^15 FLOP", "lower", flops, "published count, whole training",
           GROUP_SAE),
    Metric("num_tokens", "tokens", "tokens", "neither", count, "tokens that each SAE was trained on"),
    COSTS["memory_bytes"],
    COSTS["seconds"],
    Metric("seed_stability", "found again", _SHARE, "higher", _percent,
           "latents that another seed's SAE of the same layers and setting has too: one-to-one pairs of decoder rows "
           "with a cosine of at least 0.7; mean over SAEs and pairs of seeds", "arXiv 2501.16615"),
)  # fmt: skip

CANDIDATES = _table(
    Metric("num_groups", "groups", "SAEs", "neither", _0, "one SAE per group"),
    Metric("amad", "AMAD", "share of a half turn", "lower", _3,
           "mean over groups of the largest distance inside the group", GROUP_SAE),
    Metric("size_weighted_amad", "weighted", "share of a half turn", "lower", _3,
           "the same, each group counted once per layer"),
    Metric("largest_diameter", "largest", "share of a half turn", "lower", _3, "the largest distance inside a group"),
    Metric("mean_angle", "mean angle", "half turns", "lower", _3, "sum over groups of sum_pq d(p, q) / size"),
    *COSTS.values(),
    RECONSTRUCTION["fvu"],
    Metric("fvu_increase", "FVU increase", "ratio", "lower", change, "FVU / FVU of one SAE per layer - 1, predicted"),
    Metric("delta_ce_increase", "ΔCE increase", "ratio", "lower", change,
           "ΔCE / ΔCE of one SAE per layer - 1, predicted"),
)  # fmt: skip

METRICS = RECONSTRUCTION | LOSSES | SUMMARY | CANDIDATES
"""The metrics of layers, suites and candidates by name; those of circuits and similarity have tables of their own."""
