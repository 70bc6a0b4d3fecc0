"""Out-of-distribution robustness: what a classifier learns from images of one source (Sec. 1; Sauer and Geiger, 2021).

In the original training images colour or texture gives the label away. A classifier that keeps to the shape does as
well on test images with random appearances; one that learnt the colour guesses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from skdcgn.classifiers.features import load_feature_network
from skdcgn.classifiers.invariant import ClassifierConfig, evaluate, fit, new_classifier
from skdcgn.counterfactuals.datasets import CounterfactualConfig, draw
from skdcgn.counterfactuals.gan import GANConfig, GANTrainer, sample_images
from skdcgn.data.labels import balanced_labels
from skdcgn.data.mnist import NUM_CLASSES, RESOLUTION, Dataset, TensorSet, make_dataset
from skdcgn.images import grid, to_float
from skdcgn.mechanisms import Source
from skdcgn.randomness import stream
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runs.run import Run
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import TinyGANGenerator

DRIFT = "drifted"
"""Suffix of the test sets whose colours wander as in the CGN authors' loader."""

EVALUATION_BATCH = 100
"""Images classified at a time: on a CPU, more of them no longer fit its caches."""


@dataclass(frozen=True)
class ImageSource:
    """Where the training images of a classifier come from."""

    name: str
    """For tags and titles."""
    identity: str
    """What decides the images, beside their number and seed."""
    draw: Callable[[int, int], tuple[Tensor, Tensor]]
    """From the number of images and a seed to pixels (N, 3, 32, 32) uint8 and labels (N,) int64."""


def original_images(dataset: Dataset) -> ImageSource:
    """Return the biased training images themselves; where more are asked for than there are, they are repeated."""

    def sample(n: int, seed: int) -> tuple[Tensor, Tensor]:
        data = make_dataset(dataset, "train", seed)
        index = torch.arange(n) % len(data)
        return data.pixels[index], data.labels[index]

    return ImageSource(f"original {dataset} MNIST", f"original {dataset}", sample)


def generated_images(generator: TinyGANGenerator, name: str, identity: str) -> ImageSource:
    """Return images of a conditional GAN."""
    return ImageSource(name, identity, lambda n, seed: sample_images(generator, n, seed))


def counterfactual_images(source: Source, per_mask: int) -> ImageSource:
    """Return the counterfactuals of a source, at the data's resolution, labelled by their shape."""

    def sample(n: int, seed: int) -> tuple[Tensor, Tensor]:
        data = draw(source, CounterfactualConfig(n, per_mask, seed=seed), resolution=RESOLUTION)
        return data.pixels, data.shape

    return ImageSource(source.name, source.sha256, sample)


@lru_cache(maxsize=4)  # one source after another is tested with the same few seeds
def unbiased_sets(dataset: Dataset, seed: int) -> dict[str, TensorSet]:
    """Return the test sets of a variant, where appearances are random.

    Returns:
        "valid", the last 10,000 of MNIST-train, which the CGN authors test on; "test", MNIST-test; and, where the
        published loader lets colours drift (see `data.make_dataset`), "valid_drifted" and "test_drifted".
    """
    sets = {split: make_dataset(dataset, split, seed) for split in ("valid", "test")}
    if dataset in ("double_colored", "digits"):
        drifted = {f"{split}_{DRIFT}": make_dataset(dataset, split, seed, published_code=True) for split in sets}
        sets |= drifted
    return sets


class ClassifierTrainer:
    """Trains the invariant classifier epoch by epoch; a `training.Trainer`.

    It takes minutes at most, so that a checkpoint holds nothing: a resumed training starts anew, and ends the same.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        config: ClassifierConfig,
        seed: int,
        device: torch.device | str = "cpu",
        num_classes: int = NUM_CLASSES,
    ) -> None:
        """Start a training; see `classification.fit`."""
        self.step, self.steps = 0, config.epochs
        self.model = new_classifier(num_classes, seed).to(device)
        self._epochs = fit(self.model, pixels, labels, config, seed)

    def fit(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train to the end, yielding (epochs done, losses) after each."""
        for epoch, losses in self._epochs:
            self.step = epoch
            yield epoch, losses

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stay at the beginning."""


def train_classifier(
    run: Run,
    images: ImageSource,
    n: int,
    dataset: Dataset,
    config: ClassifierConfig,
    seed: int,
    runtime: Runtime,
    device: torch.device | str = "cpu",
) -> None:
    """Train an invariant classifier on images of one source, and test it where appearances are random, as a run.

    The run gets `final/train_accuracy` on the images that it learnt from and `final/<test set>_accuracy` on each of
    `unbiased_sets`; as tensors the `confusion` of each set (C, C) and its `class_accuracy` (C,), and `samples`, what
    the training images look like.

    Args:
        run: where everything is logged.
        images: what to learn from.
        n: how many of them.
        dataset: the variant that the images are of.
        config: how to learn.
        seed: of images, initial weights, order, and the appearances of the test sets.
        runtime: see `training.train`.
        device: where to train.
    """
    pixels, labels = images.draw(n, seed)
    trainer = ClassifierTrainer(pixels, labels, config, seed, device)
    description = f"classifier on {images.name} (seed {seed})"
    train(trainer, run, replace(runtime, log_every=1), lambda step: None, (), description)
    sets = {"train": (pixels, labels)}
    sets |= {name: (test.pixels, test.labels) for name, test in unbiased_sets(dataset, seed).items()}
    evaluations = {
        name: evaluate(trainer.model, *images_and_labels, config.precision, EVALUATION_BATCH)
        for name, images_and_labels in sets.items()
    }
    run.log_metrics("final", {f"{name}_accuracy": each.accuracy for name, each in evaluations.items()}, trainer.step)
    run.log_tensors("confusion", {name: each.confusion for name, each in evaluations.items()})
    run.log_tensors("class_accuracy", {name: each.class_accuracy for name, each in evaluations.items()})
    shown, classes = two_of_each_class(pixels, labels)
    run.log_tensors("samples", {"pixels": shown, "labels": classes})
    run.log_image("training images", grid(to_float(shown).chunk(2), scale=2), 0)


def train_gan(
    run: Run, dataset: Dataset, config: GANConfig, runtime: Runtime, device: torch.device | str = "cpu"
) -> None:
    """Train a conditional GAN on a variant's biased images, as a run that keeps it as `generator`.

    `final/recognised` is the share of its images in which the project's own digit classifier sees their label.

    Args:
        run: where everything is logged.
        dataset: the variant.
        config: how to train.
        runtime: see `training.train`.
        device: where to train.
    """
    trainer = GANTrainer(config, make_dataset(dataset, "train", config.seed), device)
    labels = balanced_labels(4, config.generator.num_classes).to(device)
    noise = torch.randn(len(labels), config.generator.noise_dim, generator=stream(0, "gan", "sheet")).to(device)

    def draw_sheet(step: int) -> None:
        run.log_image("samples", grid(trainer.result(noise, labels).chunk(4), scale=2), step)

    description = f"GAN on {dataset} (seed {config.seed})"
    train(trainer, run, runtime, draw_sheet, evaluation_steps(trainer.steps, 5), description)
    pixels, drawn = sample_images(trainer.result, 1000, seed=0)
    recognised = evaluate(load_feature_network().to(device), pixels, drawn).accuracy
    run.log_metrics("final", {"recognised": recognised}, trainer.step)
    run.log_student(trainer.result, "generator")


def two_of_each_class(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pick two images of each class that occurs, to show what a set looks like.

    They are taken from the beginning and the middle of each class's, where masks are not the same.

    Returns:
        Pixels and labels in the order 0, 1, ..., 0, 1, ...
    """
    found = [(labels == label).nonzero().flatten() for label in labels.unique()]
    index = torch.stack([positions[len(positions) * half // 2] for half in range(2) for positions in found])
    return pixels[index], labels[index]
