"""The report's figures: each reads the run's records and returns a drawing, or None where there is nothing to draw."""

from groupsae.report.figures.candidates import amad_curve, candidate_strip
from groupsae.report.figures.circuits import faithfulness_curves
from groupsae.report.figures.cost import cost_and_quality, stage_seconds
from groupsae.report.figures.distances import distance_map
from groupsae.report.figures.frontier import frontier
from groupsae.report.figures.interpretability import latent_scores
from groupsae.report.figures.pareto import pareto, pareto_of_layers
from groupsae.report.figures.quality import layer_quality, layer_sparsity
from groupsae.report.figures.similarity import shared_directions
from groupsae.report.figures.theme import Drawing
from groupsae.report.figures.training import training_curves

__all__ = [
    "Drawing",
    "amad_curve",
    "candidate_strip",
    "cost_and_quality",
    "distance_map",
    "faithfulness_curves",
    "frontier",
    "latent_scores",
    "layer_quality",
    "layer_sparsity",
    "pareto",
    "pareto_of_layers",
    "shared_directions",
    "stage_seconds",
    "training_curves",
]
