"""Circuits: which latents a task needs, and how much of the model's behavior they carry.

pairs, generators   prompts that differ in what decides the answer
prompts, tasks      what the tokenizer allows, what the model can do
spliced             the model with a suite's SAEs at all hookpoints at once
attribution, nodes  how much each latent matters; the sets of the strongest
faithfulness        what a set does alone, and what is left without it
curves              ratios by size, with intervals and areas
evaluate            all of it, for several suites
"""

from groupsae.evaluation.circuits.evaluate import CircuitsResult, evaluate_circuits

__all__ = ["CircuitsResult", "evaluate_circuits"]
