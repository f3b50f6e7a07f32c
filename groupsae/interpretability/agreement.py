"""How far scores that need no judge rank latents as a judge does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from groupsae.interpretability.explanations import Explanations
from groupsae.interpretability.summary import Scores

METHODS = ("detection", "fuzzing")
MIN_LATENTS = 10
"""Judged latents below which no correlation is given."""


def agreement(
    found: Mapping[str, Mapping[str, tuple[int, Scores]]], explanations: Explanations
) -> dict[str, dict[str, dict[str, Any]]]:
    """Spearman's rank correlation of each score with the judge's, by the judge's method and the score.

    Over the latents of all suites and layers that have both. Empty without a judge.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for method in METHODS:
        pairs: dict[str, list[tuple[float, float]]] = {}
        for (suite, hookpoint), judged in explanations.items():
            scores = found.get(suite, {}).get(hookpoint)
            for latent, one in judged.items() if scores else ():
                for name, score_S in scores[1].score_S.items():
                    if method in one and latent < len(score_S) and np.isfinite(score_S[latent]):
                        pairs.setdefault(name, []).append((float(score_S[latent]), one[method]))
        rows = {name: _correlation(values) for name, values in pairs.items() if len(values) >= MIN_LATENTS}
        if rows:
            table[method] = rows
    return table


def _correlation(values: list[tuple[float, float]]) -> dict[str, Any]:
    ours, judged = zip(*values, strict=True)
    if len(set(ours)) < 2 or len(set(judged)) < 2:
        return {"spearman": None, "latents": len(values)}
    return {"spearman": float(stats.spearmanr(ours, judged).statistic), "latents": len(values)}
