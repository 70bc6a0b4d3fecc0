"""Counterfactual generative networks (CGN): networks, losses, trainings, teachers, and the paper's baseline."""
