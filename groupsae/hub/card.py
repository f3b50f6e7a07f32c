"""The card of a release: a page for people, made from what the release says of itself."""

from __future__ import annotations

from pathlib import Path

from groupsae.hookpoints import natural_key
from groupsae.hub.place import is_repository
from groupsae.records.types.lineage import Lineage
from groupsae.records.types.release import ReleasedLayer, ReleaseRecord

TEMPLATE = "card.md.jinja"
THRESHOLD = 'latents = pre * (pre > weights["threshold"])'
FORMULAS = {
    "topk": "top = pre.relu().topk({k})\nlatents = torch.zeros_like(pre).scatter(-1, top.indices, top.values)",
    "batchtopk": THRESHOLD,
    "matryoshka": THRESHOLD,
    "jumprelu": THRESHOLD,
    "relu": "latents = pre.relu()",
    "gated": 'is_open = pre + weights["b_gate"] > 0\n'
    'latents = is_open * (pre * weights["r_mag"].exp() + weights["b_mag"]).relu()',
}
"""Latents as SAELens' layout holds them, of pre-activations (of gated SAEs, without bias), by architecture."""


def card(release: ReleaseRecord, repo: str) -> str:
    """The text of `README.md` for a repository, in Markdown with the hub's header."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    layers = {name: release.layers[name] for name in sorted(release.layers, key=natural_key)}
    example = max(release.saes.values(), key=lambda sae: len(sae.layers))
    return environment.get_template(TEMPLATE).render(
        release=release,
        repo=repo,
        layers=layers,
        number=_number,
        base_model=release.model.name if is_repository(release.model.name) else None,
        shared=any(len(sae.layers) > 1 for sae in release.saes.values()),
        example=example.layers[0],
        gated=example.architecture == "gated",
        formula=FORMULAS[example.architecture].format(k=example.k),
        d_model=release.model.d_model or "D",
        origins={
            name: _origin(sae.lineage) for name, sae in release.saes.items() if sae.lineage and sae.lineage.origin
        },
    )


def _number(layer: ReleasedLayer, name: str) -> str:
    """A number with its interval, where it has one."""
    value, interval = getattr(layer, name), layer.intervals.get(name)
    if value is None:
        return "-"
    return f"{value:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _origin(lineage: Lineage) -> str:
    """Where an SAE comes from, in a sentence."""
    origin = lineage.origin
    if origin is None:
        return f"{lineage.tokens:,} tokens from random weights"
    before = _origin(origin.lineage) if origin.lineage else "of unknown history"
    where = f" of {origin.run}" if origin.run else ""
    return f"{lineage.tokens:,} tokens from the SAE of {origin.group} at {origin.hookpoint}{where} ({before})"
