"""Out-of-distribution robustness: what a classifier learns from images of one source (Sec. 1; Sauer and Geiger, 2021).

In the original training images color or texture gives the label away. A classifier that relies on the shape does as
well on test images with random appearances; one that learned the color guesses.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from skdcgn.classifiers.invariant import ClassifierTrainer, evaluate
from skdcgn.configs.counterfactuals import CounterfactualConfig
from skdcgn.configs.names import Dataset
from skdcgn.counterfactuals.datasets import draw
from skdcgn.counterfactuals.gan import GANTrainer, sample_images
from skdcgn.data.labels import balanced_labels
from skdcgn.data.mnist import RESOLUTION, TensorSet, make_dataset
from skdcgn.images import grid, to_float
from skdcgn.measure.features import load_feature_network
from skdcgn.randomness import stream
from skdcgn.recipes.configs.ood_robustness import ClassifierRunConfig, GANRunConfig
from skdcgn.recipes.sources import load_source
from skdcgn.recipes.students import Needs, load_student
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runs.run import Run
from skdcgn.runtime import setup
from skdcgn.tinygan.networks import save_generator

GENERATOR = "generator"
"""What a GAN's run keeps it under, and the name by which a classifier's case needs its images' generator."""
DRIFT = "drifted"
"""Suffix of the test sets whose colors wander as in the CGN authors' loader."""
EVALUATION_BATCH = 100
"""Images classified at a time: on a CPU, more of them no longer fit its caches."""


def draw_images(run: Run, config: ClassifierRunConfig, needs: Needs, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw the training images of a classifier, and say in the tag `images` where they come from.

    Of the original images, where more are asked for than there are, they are repeated. Counterfactuals are drawn at the
    data's resolution and labeled by their shape.

    Returns:
        Pixels (N, 3, 32, 32) uint8 and labels (N,) int64.
    """
    dataset = config.teacher.dataset
    if config.source == "original":
        run.set_tags({"images": f"original {dataset} MNIST"})
        data = make_dataset(dataset, "train", config.seed)
        index = torch.arange(config.images) % len(data)
        return data.pixels[index], data.labels[index]
    if config.source == "gan":
        run_id = needs[GENERATOR].run_id
        run.set_tags({"images": f"GAN (run {run_id[:8]})"})
        return sample_images(load_student(run.store, run_id, GENERATOR).to(device), config.images, config.seed)
    if config.source == "cgn":
        source = config.teacher.load(device, run.store, needs.get("teacher"))
    else:
        source = load_source(f"runs:/{needs[GENERATOR].run_id}", run.store, device)
    run.set_tags({"images": source.name})
    content = CounterfactualConfig(config.images, config.per_mask, seed=config.seed)
    data = draw(source, content, resolution=RESOLUTION)
    return data.pixels, data.shape


@lru_cache(maxsize=4)  # one source after another is tested with the same few seeds
def unbiased_sets(dataset: Dataset, seed: int, limit: int | None = None) -> dict[str, TensorSet]:
    """Return the test sets of a variant, where appearances are random, each of `limit` images or all.

    Returns:
        "valid", the last 10,000 of MNIST-train, which the CGN authors test on; "test", MNIST-test; and, where the
        published loader lets colors drift (see `data.mnist.make_dataset`), "valid_drifted" and "test_drifted".
    """
    sets = {split: make_dataset(dataset, split, seed, limit=limit) for split in ("valid", "test")}
    if dataset in ("double_colored", "digits"):
        for split in ("valid", "test"):
            sets[f"{split}_{DRIFT}"] = make_dataset(dataset, split, seed, published_code=True, limit=limit)
    return sets


def make_classifier(run: Run, config: ClassifierRunConfig, needs: Needs) -> None:
    """Train an invariant classifier on images of one source, and test it where appearances are random.

    The run gets `final/train_accuracy` on the images that it learned from and `final/<test set>_accuracy` on each of
    `unbiased_sets`; as tensors the `confusion` of each set (C, C) and its `class_accuracy` (C,), and `samples`, what
    the training images look like.
    """
    device = setup(config.runtime)
    pixels, labels = draw_images(run, config, needs, device)
    trainer = ClassifierTrainer(pixels, labels, config.classifier, config.seed, device)
    description = f"classifier from {config.source} images (seed {config.seed})"
    train(trainer, run, replace(config.runtime, log_every=1), lambda step: None, (), description)
    tests = unbiased_sets(config.teacher.dataset, config.seed, config.test_images)
    sets = {"train": (pixels, labels), **{name: (test.pixels, test.labels) for name, test in tests.items()}}
    evaluations = {
        name: evaluate(trainer.model, *images_and_labels, config.classifier.precision, EVALUATION_BATCH)
        for name, images_and_labels in sets.items()
    }
    run.log_metrics("final", {f"{name}_accuracy": each.accuracy for name, each in evaluations.items()}, trainer.step)
    run.log_tensors("confusion", {name: each.confusion for name, each in evaluations.items()})
    run.log_tensors("class_accuracy", {name: each.class_accuracy for name, each in evaluations.items()})
    shown, classes = two_of_each_class(pixels, labels)
    run.log_tensors("samples", {"pixels": shown, "labels": classes})
    run.log_image("training images", grid(to_float(shown).chunk(2), scale=2), 0)


def make_gan(run: Run, config: GANRunConfig, _: Needs) -> None:
    """Train a conditional GAN on a variant's biased images; the run keeps it as `generator`.

    `final/recognised` is the share of its images in which the project's own digit classifier sees their label.
    """
    device, gan = setup(config.runtime), config.gan
    trainer = GANTrainer(gan, make_dataset(config.dataset, "train", gan.seed), device)
    labels = balanced_labels(4, gan.generator.num_classes).to(device)
    noise = torch.randn(len(labels), gan.generator.noise_dim, generator=stream(0, "gan", "sheet")).to(device)

    def draw_sheet(step: int) -> None:
        run.log_image("samples", grid(trainer.result(noise, labels).chunk(4), scale=2), step)

    description = f"GAN on {config.dataset} (seed {gan.seed})"
    train(trainer, run, config.runtime, draw_sheet, evaluation_steps(trainer.steps, 5), description)
    pixels, drawn = sample_images(trainer.result, 1000, seed=0)
    recognized = evaluate(load_feature_network().to(device), pixels, drawn).accuracy
    run.log_metrics("final", {"recognised": recognized}, trainer.step)
    run.log_file(GENERATOR, lambda folder: save_generator(trainer.result, folder))


def two_of_each_class(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pick two images of each class that occurs, to show what a set looks like.

    They are taken from the beginning and the middle of each class's, where masks are not the same.

    Returns:
        Pixels and labels in the order 0, 1, ..., 0, 1, ...
    """
    found = [(labels == label).nonzero().flatten() for label in labels.unique()]
    index = torch.stack([positions[len(positions) * half // 2] for half in range(2) for positions in found])
    return pixels[index], labels[index]
