"""Training CGN's invariant ensemble on real and counterfactual images, and measuring what its heads look at.

The measures are those of CGN's ImageNet experiments: accuracy on ImageNet-val; on IN-9, accuracy with backgrounds of
the same and of random classes, whose difference is the background gap (BG gap); and on cue-conflict stimuli the shape
bias, the share of shape among the decisions for shape or texture.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from skdcgn.classifiers.ensemble import CounterfactualSet, EnsembleConfig, EnsembleTrainer
from skdcgn.classifiers.ensemble_measures import imagenet_accuracy, measure
from skdcgn.classifiers.networks import invariant_ensemble
from skdcgn.data.imagenet import RobustnessSets
from skdcgn.randomness import seeded
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runs.run import Run
from skdcgn.runtime import Runtime


def train_ensemble(
    run: Run,
    counterfactuals: CounterfactualSet | None,
    sets: RobustnessSets,
    config: EnsembleConfig,
    seed: int,
    runtime: Runtime,
    device: torch.device,
    weights: Path | None = None,
    evaluations: int = 1,
) -> None:
    """Train an invariant ensemble and measure what its heads look at, as a run.

    The run gets the losses, validation accuracies by step, the final metrics of `measure`, and the model itself as
    `ensemble.safetensors`.

    Args:
        run: where everything is logged.
        counterfactuals: to learn from beside real images, if any.
        sets: real images to learn from, and those to be tested on.
        config: how to train.
        seed: of initial weights, order and views of the images.
        runtime: see `training.train`.
        device: where to train.
        weights: of the backbone, see `models.classifiers.invariant_ensemble`.
        evaluations: times at which the validation accuracy is measured.
    """
    with seeded(seed, "ensemble"):
        model = invariant_ensemble(config.backbone, len(sets.train.classes), weights)
    trainer = EnsembleTrainer(model, sets.train, counterfactuals, config, seed, device)

    def evaluate(step: int) -> None:
        run.log_metrics("heldout", imagenet_accuracy(model, sets.validation, config, device), step)

    steps = evaluation_steps(trainer.steps, evaluations)
    train(trainer, run, runtime, evaluate, steps, f"ensemble (seed {seed})")
    run.log_metrics("final", measure(model, sets, config, device), trainer.step)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ensemble.safetensors"
        save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, path)
        run.log_file(path)
