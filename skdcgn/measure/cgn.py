"""Held-out evaluation: of a student on noise that no training ever sees, the same for every run, and of a CGN."""

import torch

from skdcgn.classifiers.invariant import ClassifierConfig, evaluate, train_classifier
from skdcgn.counterfactuals.datasets import CounterfactualConfig, draw
from skdcgn.data.mnist import Dataset, make_dataset
from skdcgn.measure import fidelity
from skdcgn.measure.heldout import _chunked
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.randomness import stream

STROKE_MASKS = 1000
"""Masks that `measure_cgn` holds against real strokes."""


def measure_cgn(
    source: Source,
    dataset: Dataset,
    images: int,
    classifier: ClassifierConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Measure an MNIST CGN by what it is for, and by its masks: a CGN has no targets to be held against.

    Args:
        source: the CGN, or whatever stands in for one.
        dataset: the variant that it learnt.
        images: counterfactuals to train the invariant classifier on.
        classifier: its training.
        seed: of counterfactuals and classifier.
        device: where to train.

    Returns:
        `train_accuracy` of a classifier on the counterfactuals that it learnt from; `valid_accuracy` (on the last
        10,000 of MNIST-train) and `test_accuracy` (on MNIST-test) where colours or textures tell nothing; `stroke_iou`
        of masks with the nearest real strokes of their class (see `metrics.nearest_stroke_iou`), and as
        `stroke_iou_of_real` the same for strokes of the valid set.
    """
    data = draw(source, CounterfactualConfig(images, seed=seed))
    model = train_classifier(data.pixels, data.shape, classifier, seed, device, source.num_classes)
    measured = {"train_accuracy": evaluate(model, data.pixels, data.shape).accuracy}
    for split in ("valid", "test"):
        unseen = make_dataset(dataset, split, seed)
        measured[f"{split}_accuracy"] = evaluate(model, unseen.pixels, unseen.labels).accuracy
    real, heldout = make_dataset(dataset, "train", seed), make_dataset(dataset, "valid", seed, limit=STROKE_MASKS)
    labels = heldout.labels.to(device)
    noise = source.sample_noise(len(labels), stream(seed, "stroke masks")).to(device)
    masks = _chunked(lambda z, y: source.render(Mechanism.SHAPE, z, y), noise, labels).cpu()
    for name, shapes in (("stroke_iou", masks), ("stroke_iou_of_real", heldout.masks())):
        measured[name] = fidelity.nearest_stroke_iou(shapes, heldout.labels, real.masks(), real.labels)
    return measured
