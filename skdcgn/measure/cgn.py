"""How good an MNIST CGN is: by the classifier that its counterfactuals train, and by its masks."""

from functools import partial

import torch

from skdcgn.classifiers.invariant import evaluate, trained_classifier
from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.counterfactuals import CounterfactualConfig
from skdcgn.configs.names import Dataset
from skdcgn.counterfactuals.datasets import draw
from skdcgn.data.labels import balanced_labels
from skdcgn.data.mnist import TensorSet, make_dataset
from skdcgn.measure.fidelity import mask_iou, nearest_stroke_iou
from skdcgn.mechanisms import Mechanism, Source, in_chunks
from skdcgn.randomness import stream

STROKE_MASKS = 1000
"""Masks that `measure_cgn` compares with real strokes."""


def measure_cgn(
    source: Source,
    dataset: Dataset,
    images: int,
    classifier: ClassifierConfig,
    seed: int,
    device: torch.device | str = "cpu",
    test_images: int | None = None,
) -> dict[str, float]:
    """Measure an MNIST CGN by what it is for, and by its masks: there is no target to compare a CGN with.

    Args:
        source: the CGN, or whatever stands in for one.
        dataset: the variant that it learned.
        images: counterfactuals to train the invariant classifier on.
        classifier: its training.
        seed: of counterfactuals and classifier.
        device: where to train.
        test_images: of each test set; all of them by default.

    Returns:
        `train_accuracy` of a classifier on the counterfactuals that it learned from; `valid_accuracy` (on the last
        10,000 of MNIST-train) and `test_accuracy` (on MNIST-test) where colors or textures tell nothing; `stroke_iou`
        of masks with the nearest real strokes of their class (see `fidelity.nearest_stroke_iou`), and as
        `stroke_iou_of_real` the same for strokes of the valid set.
    """
    data = draw(source, CounterfactualConfig(images, seed=seed))
    model = trained_classifier(data.pixels, data.shape, classifier, seed, device, source.num_classes)
    measured = {"train_accuracy": evaluate(model, data.pixels, data.shape).accuracy}
    for split in ("valid", "test"):
        unseen = make_dataset(dataset, split, seed, limit=test_images)
        measured[f"{split}_accuracy"] = evaluate(model, unseen.pixels, unseen.labels).accuracy
    real, heldout = make_dataset(dataset, "train", seed), make_dataset(dataset, "valid", seed, limit=STROKE_MASKS)
    labels = heldout.labels.to(device)
    noise = source.sample_noise(len(labels), stream(seed, "stroke masks")).to(device)
    masks = in_chunks(partial(source.render, Mechanism.SHAPE), noise, labels, 250).cpu()
    for name, shapes in (("stroke_iou", masks), ("stroke_iou_of_real", heldout.masks())):
        measured[name] = nearest_stroke_iou(shapes, heldout.labels, real.masks(), real.labels)
    return measured


def mask_quality(source: Source, strokes: TensorSet, seed: int, per_class: int = 20) -> dict[str, float]:
    """Tell whether the masks of a CGN, as it generates them, are digits, and whether those of a class differ.

    Args:
        source: the CGN.
        strokes: real digits, with every class.
        seed: of the noise.
        per_class: masks of each class, at least 2.

    Returns:
        `stroke_iou`, mean IoU with the nearest real stroke of the class, and `mask_sameness`, mean IoU of two masks of
        one class: 1 where the mask follows from the label alone. A classifier can learn its training set from either,
        and only the first helps it with real digits.
    """
    labels = balanced_labels(per_class, source.num_classes)
    noise = source.sample_noise(len(labels), stream(seed, "shape study", "masks"))
    masks = source.render(Mechanism.SHAPE, noise, labels).cpu()
    next_of_class = masks.roll(source.num_classes, dims=0)
    return {
        "stroke_iou": nearest_stroke_iou(masks, labels, strokes.masks(), strokes.labels),
        "mask_sameness": mask_iou(masks, next_of_class),
    }
