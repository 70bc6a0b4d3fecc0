"""The study of the shape mechanism (Sec. 4.5, Table 1, Fig. 3): a CGN and two classifiers for each reading of it.

What is left open, and what each combination is called, is told in `skdcgn.counterfactuals.readings`.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from skdcgn.cgn.adversarial import CGNTrainer
from skdcgn.classifiers.invariant import ClassifierTrainer, Evaluation, evaluate
from skdcgn.classifiers.two_way import two_way_sets
from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.names import Dataset
from skdcgn.counterfactuals.datasets import draw
from skdcgn.counterfactuals.readings import Reading
from skdcgn.counterfactuals.remembering import Remembering
from skdcgn.counterfactuals.sampling import sample_counterfactuals
from skdcgn.data.mnist import NUM_CLASSES, TensorSet, make_dataset
from skdcgn.data.weights import save_state_dict
from skdcgn.images import grid, to_float, to_uint8
from skdcgn.measure.cgn import mask_quality
from skdcgn.mechanisms import Mechanism, Source, compose, intervene
from skdcgn.randomness import stream
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.recipes.configs.table1_shape_im import ModifiedCGNConfig, ReadingConfig
from skdcgn.recipes.sources import CGN_FILE, load_trained
from skdcgn.recipes.students import Needs
from skdcgn.runs.loop import train
from skdcgn.runs.run import Interruption, Run
from skdcgn.runs.store import Store
from skdcgn.runtime import setup

CGN = "cgn"
"""The name by which the case of a classifier needs the run of its CGN."""


def make_modified_cgn(run: Run, config: ModifiedCGNConfig, needs: Needs) -> None:
    """Train a CGN, with masks modified in its training or not; the run keeps it as `cgn.safetensors`."""
    device, data = setup(config.runtime), real_images(config.teacher.dataset).training
    start = None
    if config.init == "pretrained":
        start = config.teacher.load(device, run.store, needs.get("teacher")).cgn
    trainer = CGNTrainer(config.training, data, start, device)
    run.set_tags({"perceptual": trainer.perceptual})
    train(trainer, run, config.runtime, lambda step: None, (), str(config))
    metadata = {"dataset": config.teacher.dataset, "run": run.run_id}
    run.log_file(CGN_FILE, lambda path: save_state_dict(path, trainer.result.state_dict(), metadata))


def make_reading(run: Run, config: ReadingConfig, needs: Needs) -> None:
    """Train the classifiers of a reading; the run gets `final/*` of `measure`, and the tensors `samples` of Fig. 3."""
    device, start = setup(config.runtime), time.perf_counter()
    trained = needs[CGN].run_id if CGN in needs else None
    teacher = needs["teacher"].run_id if "teacher" in needs else None
    source = _remembering(run.store, config.teacher, trained, teacher, device)
    real = real_images(config.teacher.dataset, config.test_images)
    with run.interruption() as interruption:
        run.log_metrics("final", measure(config, source, real, device, interruption))
    run.log_metrics("cost", {"seconds": time.perf_counter() - start})
    pixels = samples(source, config.reading, config.seed)
    run.log_tensors("samples", pixels)
    run.log_image("masks over images", grid([to_float(pixels["mask"]), to_float(pixels["images"])], scale=2), 0)


class RealImages(NamedTuple):
    """The real images of a study."""

    training: TensorSet
    """In the colors of their labels: what CGNs are trained on."""
    valid: TensorSet
    """In random colors: the last 10,000 of MNIST's training set, the original's test set."""
    test: TensorSet
    """In random colors: MNIST's own test set."""


@lru_cache(maxsize=2)  # cases of one start share them
def real_images(dataset: Dataset, limit: int | None = None) -> RealImages:
    """Load the real images, of the two test sets at most `limit` each.

    Raises:
        InputError: the files are missing.
    """
    return RealImages(
        make_dataset(dataset, "train", 0),
        make_dataset(dataset, "valid", 0, limit=limit),
        make_dataset(dataset, "test", 0, limit=limit),
    )


@lru_cache(maxsize=1)  # readings of one CGN come one after another
def _remembering(
    store: Store, config: MNISTTeacherConfig, trained: str | None, teacher: str | None, device: torch.device
) -> Remembering:
    """Return the CGN that a run trained, or else the teacher, with a memory of what it rendered."""
    if trained is not None:
        return Remembering(load_trained(store, store.record(trained), config.dataset, device))
    return Remembering(config.load(device, store, None if teacher is None else store.record(teacher)))


def measure(
    config: ReadingConfig, source: Source, real: RealImages, device: torch.device, interruption: Interruption
) -> dict[str, float]:
    """Draw the counterfactuals of a reading, train both classifiers on them, and measure all three.

    Args:
        config: the reading.
        source: its CGN.
        real: the real images.
        device: where to train.
        interruption: what asks to stop.

    Returns:
        Accuracies from 0 to 1. Of digits: `train_accuracy`, over the last epoch, as the published code has it, and
        `valid_accuracy` and `test_accuracy` on the two test sets. Of the two ways: `two_way_train_accuracy`,
        `two_way_accuracy` on held-out images of both kinds, and `two_way_test_accuracy`, the share of the valid set
        that is taken for real: what the caption of Table 1 alone would mean by a test accuracy. And `mask_quality`.

    Raises:
        Interrupted: it was asked to stop. Nothing is kept: begun anew, a reading comes out the same, in minutes.
    """
    classify = partial(_classify, seed=config.seed, device=device, interruption=interruption)
    data = draw(source, config.counterfactuals)
    tests = (real.valid, real.test)
    measured, evaluations = classify(data.pixels, data.shape, config.classifier, tests=tests)
    for name, evaluation in zip(("valid_accuracy", "test_accuracy"), evaluations, strict=True):
        measured[name] = evaluation.accuracy

    training, held_out = two_way_sets(real.training.pixels, data.pixels, config.two_way_images, config.seed)
    all_real = replace(real.valid, labels=torch.zeros_like(real.valid.labels))
    tests = (TensorSet(*held_out, strokes=torch.empty(0)), all_real)
    trained, evaluations = classify(*training, config.two_way, tests=tests, num_classes=2)
    measured["two_way_train_accuracy"] = trained["train_accuracy"]
    for name, evaluation in zip(("two_way_accuracy", "two_way_test_accuracy"), evaluations, strict=True):
        measured[name] = evaluation.accuracy
    return measured | mask_quality(source, real.valid, config.seed)


def _classify(
    pixels: Tensor,
    labels: Tensor,
    config: ClassifierConfig,
    tests: Sequence[TensorSet],
    seed: int,
    device: torch.device,
    interruption: Interruption,
    num_classes: int = NUM_CLASSES,
) -> tuple[dict[str, float], list[Evaluation]]:
    """Train a classifier; return its accuracy in training, and how it does on some test sets."""
    trainer = ClassifierTrainer(pixels, labels, config, seed, device, num_classes)
    accuracy = 0.0
    for _, epoch in trainer.fit():
        accuracy = epoch["accuracy"]
        interruption.check()
    evaluations = [evaluate(trainer.model, test.pixels, test.labels, config.precision) for test in tests]
    return {"train_accuracy": accuracy}, evaluations


def samples(source: Source, reading: Reading, seed: int) -> dict[str, Tensor]:
    """Draw a counterfactual of each class for Fig. 3: noise, labels and shifts are the same for all readings of a seed.

    Returns:
        Pixels: the masks as `generated` by the CGN and as modified, `mask`, (C, 1, H, W), and the `images` that these
        compose, (C, 3, H, W).
    """
    drawn = sample_counterfactuals(
        source,
        torch.arange(source.num_classes),
        stream(seed, "shape study", "samples"),
        permute=reading.labels == "permuted",
    )
    generator = stream(seed, "shape study", "intervention")
    mask = intervene(drawn.mask, reading.at_sampling, generator, reading.strength)
    tensors = {
        "generated": Mechanism.SHAPE.to_image(drawn.mask, 1),
        "mask": Mechanism.SHAPE.to_image(mask, 1),
        "images": compose(mask, drawn.texture, drawn.background),
    }
    return {name: to_uint8(tensor) for name, tensor in tensors.items()}
