"""Train a CGN for an MNIST variant, and set it beside its authors' own (paper Sec. 2 and 4.1).

    python experiments/train_cgn_mnist.py                                double-colored MNIST
    python experiments/train_cgn_mnist.py --dataset digits               scikit-learn's digits: no network, no data
    python experiments/train_cgn_mnist.py --dataset wildlife --training.discriminator conv
    python experiments/train_cgn_mnist.py --profile paper                the authors' training: VGG16, 46,900 steps

The run keeps the generator as `cgn.safetensors`, which every other script takes with `--teacher`. What it is worth is
the accuracy, on digits whose colours tell nothing, of a classifier that learnt from its counterfactuals alone.
"""

import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from skdcgn import cli, randomness, runtime
from skdcgn.cgn.adversarial import CGNTrainer, CGNTrainingConfig, save_cgn
from skdcgn.cgn.teachers import MNISTTeacher, mnist_teacher
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.counterfactuals.sampling import sample_counterfactuals
from skdcgn.data import weights
from skdcgn.data.labels import balanced_labels
from skdcgn.data.mnist import Dataset, make_dataset
from skdcgn.errors import InputError
from skdcgn.images import grid
from skdcgn.measure.cgn import measure_cgn
from skdcgn.measure.cost import parameters
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.recipes.profiles import MNIST, Profile
from skdcgn.runs import identity as run_identity
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runtime import Runtime

DESCRIPTION = """Adversarial training of a CGN for an MNIST variant: a teacher of our own.
`final/valid_accuracy` and `final/test_accuracy`: of a classifier that learnt from its counterfactuals alone, where
colours or textures tell nothing. `final/authors_*`: the same for the CGN authors' weights, on the same terms.
The sample sheets show, from top to bottom, masks, textures, backgrounds, images, and images with permuted labels."""


@dataclass(frozen=True)
class Config:
    """Training of an MNIST CGN."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    training: CGNTrainingConfig
    counterfactuals: int
    """Counterfactuals that the classifier learns from which judges the CGN."""
    classifier: ClassifierConfig
    """Training of that classifier."""
    dataset: Dataset = "double_colored"
    """What to train on."""
    evaluations: int = 5
    """Sample sheets during training."""
    runtime: Runtime = field(default_factory=Runtime)


DEFAULTS = {name: Config(name, scale.cgn, scale.cgn_images, scale.classifier) for name, scale in MNIST.items()}


def main(config: Config) -> str:
    """Train the CGN unless that was done before; return the id of its run."""
    device = runtime.setup(config.runtime)
    store = run_store.open_store()
    tags = {
        "profile": config.profile,
        "dataset": config.dataset,
        "seed": config.training.seed,
        "source": "cgn",
        "overrides": run_identity.overrides(config, DEFAULTS[config.profile], ("dataset",)),
        "paper": "Sec. 4.1",
    }
    with store.start("train_cgn_mnist", config, f"CGN on {config.dataset}", tags=tags, description=DESCRIPTION) as run:
        if run.finished:
            print(f"CGN on {config.dataset}: finished before (run {run.run_id}), skipped")
            return run.run_id
        trainer = CGNTrainer(config.training, make_dataset(config.dataset, "train", config.training.seed), None, device)
        trained = train_and_measure(run, trainer, config, device)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cgn.safetensors"
            save_cgn(path, trainer.ema, {"dataset": config.dataset, "run": run.run_id})
            run.log_file(path)
        sheets = {"ours": sample_tensors(trained)}
        authors = authors_teacher(config.dataset, device)
        if authors is not None:
            measured = _measure(authors, config, device)
            run.log_metrics("final", {f"authors_{name}": value for name, value in measured.items()}, trainer.step)
            sheets["authors"] = sample_tensors(authors)
        run.log_tensors("samples", {f"{who}_{key}": rows for who in sheets for key, rows in sheets[who].items()})
    final = run.final
    theirs = f", authors' CGN {100 * final['authors_test_accuracy']:.1f} %" if "authors_test_accuracy" in final else ""
    print(f"classifier from counterfactuals, on unseen digits: ours {100 * final['test_accuracy']:.1f} %{theirs}")
    return run.run_id


class CGNRecipe(Protocol):
    """The part of a config that says how a CGN is trained and judged."""

    training: CGNTrainingConfig
    counterfactuals: int
    classifier: ClassifierConfig
    dataset: Dataset
    evaluations: int
    runtime: Runtime


def train_and_measure(
    run: run_module.Run, trainer: CGNTrainer, recipe: CGNRecipe, device: torch.device
) -> MNISTTeacher:
    """Train a CGN to the end as a run, with sample sheets on the way; measure what it came to, and return it."""
    trained = MNISTTeacher(trainer.ema, "in training", "", device=device)
    run.set_tags({"perceptual": trainer.perceptual})
    train(
        trainer,
        run,
        recipe.runtime,
        lambda step: run.log_image("samples", sample_sheet(trained), step),
        evaluation_steps(trainer.steps, recipe.evaluations),
        f"CGN on {recipe.dataset} (seed {recipe.training.seed})",
    )
    sizes = {"parameters": parameters(trainer.ema), "discriminator_parameters": parameters(trainer.discriminator)}
    run.log_metrics("final", {**_measure(trained, recipe, device), **sizes}, trainer.step)
    return trained


def _measure(source: Source, recipe: CGNRecipe, device: torch.device) -> dict[str, float]:
    return measure_cgn(source, recipe.dataset, recipe.counterfactuals, recipe.classifier, recipe.training.seed, device)


def sample_tensors(source: Source) -> dict[str, torch.Tensor]:
    """Draw two samples of each class: mask, texture, background, image, and an image with permuted labels."""
    labels = balanced_labels(2, source.num_classes)
    generator = randomness.stream(0, "sample sheet")
    plain = sample_counterfactuals(source, labels, generator, permute=False)
    permuted = sample_counterfactuals(source, labels, generator)
    return {
        "mask": plain.mask,
        "texture": plain.texture,
        "background": plain.background,
        "image": plain.images,
        "counterfactual": permuted.images,
    }


def sample_sheet(source: Source) -> np.ndarray:
    """Draw `sample_tensors` as a picture, a row each."""
    tensors = sample_tensors(source)
    return grid([Mechanism.SHAPE.to_image(tensors.pop("mask"), 3), *tensors.values()], scale=2)


def authors_teacher(dataset: Dataset, device: torch.device) -> MNISTTeacher | None:
    """Return the CGN authors' teacher of a variant, or None, with a warning, where it is not to be had."""
    if dataset == "digits":
        return None
    try:
        return mnist_teacher(dataset, weights.locate(f"cgn_{dataset}_mnist"), device, f"CGN authors' {dataset} MNIST")
    except InputError as error:
        warnings.warn(f"no comparison with the CGN authors' weights: {error}", stacklevel=2)
        return None


def load_teacher(
    dataset: Dataset, profile: Profile, path: Path | None, runtime_config: Runtime, store: run_store.Store
) -> MNISTTeacher:
    """Return the teacher of an MNIST experiment.

    Args:
        dataset: whose CGN: the authors' one for an MNIST variant (see `teachers.mnist_teacher`); for digits one of our
            own, trained now unless it was before. That one is a stand-in for the paper's.
        profile: scale of that training.
        path: another checkpoint than the authors'.
        runtime_config: where to run.
        store: where the training is tracked.

    Raises:
        InputError: the weights are not at hand, or a checkpoint is given for digits.
    """
    device = runtime.setup(runtime_config)
    if dataset != "digits":
        return mnist_teacher(dataset, path, device)
    if path is not None:
        raise InputError("--dataset digits trains its own teacher: leave --teacher out, or choose another --dataset.")
    run_id = main(replace(DEFAULTS[profile], dataset="digits", runtime=runtime_config))
    with store.artifact(run_id, "cgn.safetensors") as trained:
        return mnist_teacher(dataset, trained, device, name="our CGN on digits", stand_in=True)


if __name__ == "__main__":
    cli.entry(lambda: main(cli.parse(DEFAULTS, __doc__)))
