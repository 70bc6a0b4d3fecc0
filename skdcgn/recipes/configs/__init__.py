"""The configs of runs, a module for each recipe, without PyTorch and MLflow."""
