"""Explanations that a judge gave to latents of this run, where there are any."""

from __future__ import annotations

from typing import Any

from groupsae.records import RunDirectory

FILE = "eval/interpretation.json"

Explanations = dict[tuple[str, str], dict[int, dict[str, Any]]]
"""By suite and hookpoint, and then by latent: `text`, and the scores `detection` and `fuzzing` where known."""


def read_explanations(run: RunDirectory) -> Explanations:
    """The explanations of a run; empty without a judge's record. Raises RunError for a damaged file."""
    if not run.file(FILE).exists():
        return {}
    suites = run.read_json(FILE)["suites"]
    return {
        (suite, hookpoint): {one["latent"]: _explained(one) for one in judged if one["explanation"]}
        for suite, layers in suites.items()
        for hookpoint, judged in layers.items()
    }


def _explained(one: dict[str, Any]) -> dict[str, Any]:
    own = one.get("scores", {}).get("own", {})
    scores = {method: found.get("balanced_accuracy") for method, found in own.items()}
    return {"text": one["explanation"], **{name: value for name, value in scores.items() if value is not None}}
