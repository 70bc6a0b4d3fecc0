"""The runs of CGNs of our own: teachers for MNIST, the paper's baseline of TinyGANs, the miniature ImageNet CGN."""

import json
import shlex
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from skdcgn.cgn.adversarial import CGNTrainer, CGNTrainingConfig
from skdcgn.cgn.baseline import TinyGANCGN
from skdcgn.cgn.imagenet import GENERATORS, MINIATURE, ImageNetCGN
from skdcgn.cgn.miniature import (
    FITTED,
    FitConfig,
    Regression,
    load_miniature,
    measure_statistics,
    save_miniature,
    target,
)
from skdcgn.cgn.teachers import MINIATURE_FILE, MINIATURE_TRUNCATION, MNISTTeacher, mnist_teacher
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.counterfactuals.sampling import sample_counterfactuals
from skdcgn.data.labels import balanced_labels
from skdcgn.data.mnist import Dataset, make_dataset
from skdcgn.data.weights import locate, save_state_dict
from skdcgn.errors import Unavailable
from skdcgn.images import grid
from skdcgn.measure import fidelity
from skdcgn.measure.cgn import measure_cgn
from skdcgn.measure.cost import parameters
from skdcgn.mechanisms import Mechanism, NoisePrior, Source
from skdcgn.randomness import seeded, stream
from skdcgn.recipes.sources import CGN_FILE, MNISTTeacherConfig
from skdcgn.recipes.students import Needs
from skdcgn.runs.loop import evaluation_steps, train
from skdcgn.runs.plan import RunConfig
from skdcgn.runs.run import Run
from skdcgn.runs.store import Store
from skdcgn.runtime import setup
from skdcgn.tinygan.networks import NATIVE_MNIST, TinyGANConfig, save_generator


@dataclass(frozen=True)
class CGNConfig(RunConfig):
    """Training of an MNIST CGN."""

    training: CGNTrainingConfig
    counterfactuals: int
    """Counterfactuals that the classifier learns from which judges the CGN."""
    classifier: ClassifierConfig
    """Training of that classifier."""
    dataset: Dataset = "double_colored"
    """What to train on."""
    evaluations: int = 5
    """Sample sheets during training."""


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
    metadata = {"dataset": config.dataset, "run": run.run_id}
    run.log_file(CGN_FILE, lambda path: save_state_dict(path, trainer.result.state_dict(), metadata))
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
    except Unavailable as error:
        warnings.warn(f"no comparison with the CGN authors' weights: {error}", stacklevel=2)
        return None


# --- the miniature ImageNet CGN


@dataclass(frozen=True)
class PartConfig(RunConfig):
    """The fit of one part of the miniature ImageNet CGN."""

    teacher: MNISTTeacherConfig
    part: Literal[*FITTED]
    fit: FitConfig
    seed: int
    """Of initial weights and noise."""


@dataclass(frozen=True)
class MiniatureConfig(RunConfig):
    """The miniature ImageNet CGN put together."""

    teacher: MNISTTeacherConfig
    seed: int
    """That of its parts."""
    per_class: int
    """Images of each class that it is scored on."""
    out: Path | None
    """A .safetensors file to write it to as well."""


def make_part(run: Run, config: PartConfig, needs: Needs) -> None:
    """Fit one part of the miniature to the Wildlife-MNIST CGN, and keep its weights under the part's name.

    Args:
        run: gets the losses, and pictures of the teacher over the miniature on the way.
        config: see `PartConfig`.
        needs: for the U²-Net the runs of `f_shape` and `biggan_GT`, whose pictures it learns from.
    """
    setup(config.runtime)
    part, seed = config.part, config.seed
    teacher, cgn = config.teacher.load(), _fitted(run.store, seed, needs)
    trainer = Regression(cgn, part, teacher, config.fit, seed)
    labels = balanced_labels(1, teacher.num_classes)
    prior = NoisePrior(MINIATURE_TRUNCATION)
    noise = prior.sample(len(labels), teacher.noise_dim, stream(seed, "sheet"))

    @torch.no_grad()
    def draw(step: int) -> None:
        trainer.network.eval()
        if part == "u2net":
            masks = cgn.u2net(target(teacher, "biggan_GT", noise, labels))
            rows = [Mechanism.SHAPE.to_image(m, 3) for m in (teacher.render(Mechanism.SHAPE, noise, labels), masks)]
        else:
            rows = [target(teacher, part, noise, labels), cgn.generate(part, noise, labels, MINIATURE_TRUNCATION)]
        run.log_image(f"{part}/teacher over miniature", grid(rows, scale=3), step)
        trainer.network.train()

    train(trainer, run, config.runtime, draw, evaluation_steps(trainer.steps, 5), part)
    if part in GENERATORS:
        measure_statistics(trainer.network, stream(seed, "statistics", part))
    trainer.network.eval()
    draw(trainer.steps + 1)
    run.log_tensors(part, trainer.network.state_dict())


def make_miniature(run: Run, config: MiniatureConfig, needs: Needs) -> None:
    """Put the fitted parts together, score the miniature as users get it, and keep it as `miniature_cgn.safetensors`.

    Args:
        run: gets the scores of `score_miniature`.
        config: see `MiniatureConfig`.
        needs: the run of each part, by its name.
    """
    setup(config.runtime)
    teacher, cgn = config.teacher.load(), _fitted(run.store, config.seed, needs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MINIATURE_FILE.name
        save_miniature(path, cgn, {})
        scores = score_miniature(load_miniature(path), teacher, MINIATURE_TRUNCATION, config.per_class)
    metadata = {
        "command": shlex.join(["python", *sys.argv]),
        "seed": str(config.seed),
        "fitted_to": f"{teacher.name}, SHA-256 {teacher.sha256}",
        "scores_on_unseen_noise": json.dumps({name: round(value, 4) for name, value in scores.items()}),
    }
    run.log_metrics("final", scores)
    run.log_file(MINIATURE_FILE.name, lambda path: save_miniature(path, cgn, metadata))
    if config.out is not None:
        save_miniature(config.out, cgn, metadata)


def _fitted(store: Store, seed: int, parts: Needs) -> ImageNetCGN:
    """Return the miniature as a seed starts it, with the parts that are fitted already frozen."""
    cgn = ImageNetCGN(MINIATURE, stream(seed, "miniature"))
    for name, run in parts.items():
        part = cgn.get_submodule(name)
        part.load_state_dict(store.load_tensors(run.run_id, name))
        part.to(memory_format=torch.channels_last).requires_grad_(False).eval()  # as when it was fitted
    return cgn


@torch.no_grad()
def score_miniature(
    cgn: ImageNetCGN, teacher: Source, truncation: float, per_class: int, seed: int = 0
) -> dict[str, float]:
    """Measure a miniature against what it was fitted to, on noise that no fit saw.

    Args:
        cgn: the miniature, in evaluation mode.
        teacher: the Wildlife-MNIST CGN.
        truncation: of the noise.
        per_class: images of each class.
        seed: of the noise.

    Returns:
        `<part>_l1` of the four generators; `shape_iou` of the miniature's masks, `saliency_iou` of its U²-Net on the
        teacher's own composed images, with the teacher's masks.
    """
    labels = balanced_labels(per_class, teacher.num_classes)
    prior = NoisePrior(truncation)
    noise = prior.sample(len(labels), teacher.noise_dim, stream(seed, "miniature", "scores"))
    measured = {}
    for part in GENERATORS:
        images = cgn.generate(part, noise, labels, truncation)
        measured[f"{part}_l1"] = fidelity.l1(target(teacher, part, noise, labels), images)
    masks = teacher.render(Mechanism.SHAPE, noise, labels)
    measured["shape_iou"] = fidelity.mask_iou(masks, cgn(Mechanism.SHAPE, noise, labels, truncation))
    measured["saliency_iou"] = fidelity.mask_iou(masks, cgn.u2net(target(teacher, "biggan_GT", noise, labels)))
    return measured
