"""The figure of scores that need no judge, layer by layer."""

from __future__ import annotations

from groupsae.analysis.run_records import RunRecords
from groupsae.hookpoints import natural_key
from groupsae.report.figures.quality import layer_panels
from groupsae.report.figures.theme import Drawing

PANELS = {
    "surface_auroc": "AUROC of the surface: how well token, neighbors and place tell where a latent fires",
    "intruder": "intruder found, share of trials (chance 0.2)",
    "following_auroc": "AUROC of what follows: how well promoted tokens tell the next one (chance 0.5)",
}


def latent_scores(records: RunRecords) -> Drawing | None:
    """Three scores of every layer, the groups beside the baseline; None before `eval interpretability`."""
    record = records.interpretability
    if record is None:
        return None

    def by_layer(suite: str, metric: str) -> dict[str, float]:
        layers = record.suites.get(suite, {})
        found = {hookpoint: scores[metric].mean for hookpoint, scores in layers.items()}
        known = ((hookpoint, value) for hookpoint, value in found.items() if value is not None)
        return dict(sorted(known, key=lambda item: natural_key(item[0])))

    svg = layer_panels(records, "latents", PANELS, "Scores of latents per layer", by_layer)
    caption = (
        "Higher is easier to read. A filled dot is the mean over latents of the group’s SAE at this layer, an open one "
        "that of an SAE of its own."
    )
    return svg and Drawing("latents", "How readable latents are, layer by layer", caption, svg)
