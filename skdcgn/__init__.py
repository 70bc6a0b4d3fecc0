"""Source-free knowledge distillation of counterfactual generative networks (SKDCGN)."""

__version__ = "0.1.0"
