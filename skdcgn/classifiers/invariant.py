"""Training and evaluating the invariant classifier (Sec. 4.5, Table 1), and the digit features made with it.

    python -m skdcgn feature-network --out skdcgn/assets/mnist_features.safetensors

trains the project's own feature network: the classifier on real MNIST digits in random colours, so that its features
follow the shape. The Fréchet distances of the MNIST experiments are taken on these features (`load_feature_network`).
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from skdcgn.classifiers.networks import InvariantCNN
from skdcgn.data.mnist import NUM_CLASSES
from skdcgn.errors import InputError
from skdcgn.images import to_float
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import Precision, autocast


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """How the invariant classifier is trained; the defaults are CGN's, in bf16."""

    epochs: int = 10
    """Passes over the images."""
    batch_size: int = 64
    """Images in a step; the last step of an epoch takes what is left."""
    lr: float = 1.0
    """Learning rate of Adadelta."""
    gamma: float = 0.7
    """Factor on the learning rate after each epoch."""
    precision: Precision = "bf16"
    """bf16 mixed precision takes 0.7 of the time of fp32 on a CPU, at an accuracy 0.2 points lower (two seeds)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """How a classifier did on a set.

    Attributes:
        confusion: (C, C) int64, how many images of the row's class were taken for the column's.
    """

    confusion: Tensor

    @property
    def accuracy(self) -> float:
        """Share of all images that were classified rightly."""
        return (self.confusion.trace() / self.confusion.sum()).item()

    @property
    def class_accuracy(self) -> Tensor:
        """Share of each class, (C,) float32; NaN for a class without images."""
        return self.confusion.diagonal() / self.confusion.sum(dim=1)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    config: ClassifierConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    num_classes: int = NUM_CLASSES,
) -> InvariantCNN:
    """Train a classifier and return it in eval mode; see `fit` for images and labels.

    Raises:
        InputError: no images, or a label out of range.
    """
    config = config or ClassifierConfig()
    model = new_classifier(num_classes, seed).to(device)
    for _ in fit(model, images, labels, config, seed):
        pass
    return model


def new_classifier(num_classes: int, seed: int) -> InvariantCNN:
    """Return an untrained classifier, its weights decided by the seed."""
    with seeded(seed, "classifier"):
        return InvariantCNN(num_classes)


def fit(
    model: InvariantCNN, images: Tensor, labels: Tensor, config: ClassifierConfig, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train a classifier in place with Adadelta and cross entropy, on its own device.

    Args:
        model: left in eval mode after each epoch.
        images: (N, 3, H, W), uint8 pixels (a quarter of the memory) or floats in [-1, 1].
        labels: (N,) int64.
        config: epochs, batch size and schedule.
        seed: of the order of the images.

    Yields:
        After each epoch its number, from 1, and the mean `loss` and `accuracy` over its training steps.

    Raises:
        InputError: no images, or a label out of range.
    """
    num_classes = model.linear.out_features
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(f"A classifier needs one label for each image: got {len(images)} and {len(labels)}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"The labels run from {labels.min()} to {labels.max()}, but the classifier knows 0 to {num_classes - 1}: "
            "give it as many classes as there are."
        )
    device = model.linear.weight.device
    # Channels last halves a step on a CPU; converted once, every batch taken from it is so too.
    model.to(memory_format=torch.channels_last)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    labels = labels.to(device)
    generator = stream(seed, "classifier", "order of images")
    optimizer = torch.optim.Adadelta(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=config.gamma)
    for epoch in range(1, config.epochs + 1):
        model.train()
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        for index in torch.randperm(len(labels), generator=generator).to(device).split(config.batch_size):
            batch, target = _as_float(images[index]), labels[index]
            with autocast(device, config.precision):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(index)
            correct += (logits.argmax(dim=1) == target).sum()
        schedule.step()
        model.eval()
        yield epoch, {"loss": loss_sum.item() / len(labels), "accuracy": correct.item() / len(labels)}


@torch.no_grad()
def evaluate(
    model: InvariantCNN, images: Tensor, labels: Tensor, precision: Precision = "fp32", batch_size: int = 500
) -> Evaluation:
    """Classify a set with a classifier in eval mode.

    Args:
        model: the classifier; put into eval mode.
        images: (N, 3, H, W), uint8 pixels or floats in [-1, 1].
        labels: (N,) int64.
        precision: of the forward pass.
        batch_size: images at a time.
    """
    device = model.linear.weight.device
    num_classes = model.linear.out_features
    model.eval()
    with autocast(device, precision):
        predicted = [model(_as_float(batch.to(device))).argmax(dim=1).cpu() for batch in images.split(batch_size)]
    pairs = labels.cpu() * num_classes + torch.cat(predicted)
    return Evaluation(pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes))


def _as_float(images: Tensor) -> Tensor:
    """Map pixels to [-1, 1]; floats are there already."""
    return to_float(images) if images.dtype == torch.uint8 else images
