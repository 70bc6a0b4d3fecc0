"""The run of an MNIST CGN of our own: a teacher, or the paper's baseline, whose mechanisms are TinyGANs."""

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from skdcgn.cgn.adversarial import CGNTrainer, CGNTrainingConfig, save_cgn
from skdcgn.cgn.baseline import TinyGANCGN
from skdcgn.cgn.teachers import MNISTTeacher, mnist_teacher
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.counterfactuals.sampling import sample_counterfactuals
from skdcgn.data.labels import balanced_labels
from skdcgn.data.mnist import Dataset, make_dataset
from skdcgn.data.weights import locate
from skdcgn.errors import InputError
from skdcgn.images import grid
from skdcgn.measure.cgn import measure_cgn
from skdcgn.measure.cost import parameters
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.randomness import seeded, stream
from skdcgn.recipes.sources import CGN_FILE
from skdcgn.recipes.students import Needs
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runs.run import Run
from skdcgn.runtime import Runtime, setup
from skdcgn.tinygan.networks import NATIVE_MNIST, TinyGANConfig, save_generator


@dataclass(frozen=True)
class CGNConfig:
    """Training of an MNIST CGN."""

    profile: str
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


@dataclass(frozen=True)
class BaselineConfig(CGNConfig):
    """Training of a CGN with TinyGAN generators."""

    student: TinyGANConfig = NATIVE_MNIST
    """Architecture of the three generators; they draw the data's own 32x32 pixels."""


def make_cgn(run: Run, config: CGNConfig, _: Needs) -> None:
    """Train a CGN and measure it, beside its authors' own where those weights are available.

    The run keeps the generator as `cgn.safetensors`, which every script takes with `--teacher`.
    """
    device = setup(config.runtime)
    data = make_dataset(config.dataset, "train", config.training.seed)
    trainer = CGNTrainer(config.training, data, None, device)
    trained = _train(run, trainer, config, device)
    run.log_file(CGN_FILE, lambda path: save_cgn(path, trainer.result, {"dataset": config.dataset, "run": run.run_id}))
    sheets = {"ours": sample_tensors(trained)}
    authors = _authors_teacher(config.dataset, device)
    if authors is not None:
        measured = _measure(authors, config, device)
        run.log_metrics("final", {f"authors_{name}": value for name, value in measured.items()}, trainer.step)
        sheets["authors"] = sample_tensors(authors)
    run.log_tensors("samples", {f"{who}_{key}": rows for who in sheets for key, rows in sheets[who].items()})


def make_baseline(run: Run, config: BaselineConfig, _: Needs) -> None:
    """Train a baseline and measure it; the run keeps its generators under the names of their mechanisms."""
    device = setup(config.runtime)
    with seeded(config.training.seed, "baseline"):
        cgn = TinyGANCGN(config.student)
    data = make_dataset(config.dataset, "train", config.training.seed)
    trainer = CGNTrainer(config.training, data, cgn, device)
    trained = _train(run, trainer, config, device)
    for mechanism in Mechanism:
        network = trainer.result.network(mechanism)
        run.log_file(mechanism.value, lambda folder, network=network: save_generator(network, folder))
    run.log_tensors("samples", sample_tensors(trained))


def _train(run: Run, trainer: CGNTrainer, config: CGNConfig, device: torch.device) -> MNISTTeacher:
    """Train a CGN to the end, with sample sheets on the way; measure what it came to, and return it."""
    trained = MNISTTeacher(trainer.result, "in training", "", device=device)
    run.set_tags({"perceptual": trainer.perceptual})
    train(
        trainer,
        run,
        config.runtime,
        lambda step: run.log_image("samples", _sample_sheet(trained), step),
        evaluation_steps(trainer.steps, config.evaluations),
        f"CGN on {config.dataset} (seed {config.training.seed})",
    )
    sizes = {"parameters": parameters(trainer.result), "discriminator_parameters": parameters(trainer.discriminator)}
    run.log_metrics("final", {**_measure(trained, config, device), **sizes}, trainer.step)
    return trained


def _measure(source: Source, config: CGNConfig, device: torch.device) -> dict[str, float]:
    return measure_cgn(source, config.dataset, config.counterfactuals, config.classifier, config.training.seed, device)


def sample_tensors(source: Source) -> dict[str, Tensor]:
    """Draw two samples of each class: mask, texture, background, image, and an image with permuted labels."""
    labels = balanced_labels(2, source.num_classes)
    generator = stream(0, "sample sheet")
    plain = sample_counterfactuals(source, labels, generator, permute=False)
    permuted = sample_counterfactuals(source, labels, generator)
    return {
        "mask": plain.mask,
        "texture": plain.texture,
        "background": plain.background,
        "image": plain.images,
        "counterfactual": permuted.images,
    }


def _sample_sheet(source: Source) -> np.ndarray:
    """Draw `sample_tensors` as a picture, a row each."""
    tensors = sample_tensors(source)
    return grid([Mechanism.SHAPE.to_image(tensors.pop("mask"), 3), *tensors.values()], scale=2)


def _authors_teacher(dataset: Dataset, device: torch.device) -> MNISTTeacher | None:
    """Return the CGN authors' teacher of a variant, or None, with a warning, where it is not available."""
    if dataset == "digits":
        return None
    try:
        return mnist_teacher(dataset, locate(f"cgn_{dataset}_mnist"), device, f"CGN authors' {dataset} MNIST")
    except InputError as error:
        warnings.warn(f"no comparison with the CGN authors' weights: {error}", stacklevel=2)
        return None
