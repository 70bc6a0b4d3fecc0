"""Training and evaluation of the invariant classifier for MNIST variants (Sec. 4.5, Table 1)."""

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdcgn.classifiers.networks import InvariantCNN
from skdcgn.configs.classifiers import ClassifierConfig, TrainingRecipe
from skdcgn.data.mnist import NUM_CLASSES
from skdcgn.errors import InputError
from skdcgn.images import to_float
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import Precision, autocast
from skdcgn.training import RandomState, Schedule, Trainer, descend, one_cycle

_FAST_RATE, _FAST_DECAY, _FAST_WARMUP = 3e-3, 0.05, 0.2  # of the recipe "fast", found on seeds below 100


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


class ClassifierTrainer(Trainer[Tensor]):
    """Trains the invariant classifier with cross entropy; a step is an epoch, a batch its order of images.

    Attributes:
        model: the classifier, in eval mode after each epoch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        config: ClassifierConfig,
        seed: int,
        device: torch.device | str = "cpu",
        num_classes: int = NUM_CLASSES,
    ) -> None:
        """Start a training.

        Args:
            images: (N, 3, H, W), uint8 pixels (a quarter of the memory) or floats in [-1, 1].
            labels: (N,) int64.
            config: epochs, batch size and schedule.
            seed: of the initial weights and the order of the images.
            device: where to train.
            num_classes: logits of the classifier.

        Raises:
            InputError: no images, or a label out of range.
        """
        if len(images) == 0 or len(images) != len(labels):
            raise InputError(f"A classifier needs one label for each image: got {len(images)} and {len(labels)}.")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise InputError(
                f"The labels run from {labels.min()} to {labels.max()}, but the classifier knows 0 to "
                f"{num_classes - 1}: give it as many classes as there are."
            )
        super().__init__(config.epochs)
        self._config, self._device = config, torch.device(device)
        # Channels last halves a step on a CPU; converted once, every batch taken from it is so too.
        model = new_classifier(num_classes, seed, config.recipe).to(device, memory_format=torch.channels_last)
        self._images = images.to(device).contiguous(memory_format=torch.channels_last)
        self._labels = labels.to(device)
        self.model = self.register("model", model)
        self._optimizer = self.register_optimizer("optimizer", _optimizer(model, config))
        self._rate = self._optimizer.param_groups[0]["lr"]
        self._factor = _schedule(config, -(-len(self._labels) // config.batch_size))
        self._draws = stream(seed, "classifier", "order of images")
        self.register("draws", RandomState(self._draws))

    def batches(self) -> Iterator[Tensor]:
        """Yield a random order of the images (N,) for each epoch that is still to do."""
        while self.step < self.steps:
            yield torch.randperm(len(self._labels), generator=self._draws)

    def training_step(self, batch: Tensor) -> dict[str, Tensor]:
        """Train for an epoch; return the mean `loss` and `accuracy` over its optimizer steps."""
        self.model.train()
        loss_sum, correct = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        orders = batch.to(self._device).split(self._config.batch_size)
        for position, index in enumerate(orders, start=self.step * len(orders)):
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate * self._factor(position)
            images, target = _as_float(self._images[index]), self._labels[index]
            with autocast(self._device, self._config.precision):
                logits = self.model(images)
            loss = descend(self._optimizer, {"loss": F.cross_entropy(logits.float(), target)})
            loss_sum += loss.detach() * len(index)
            correct += (logits.argmax(dim=1) == target).sum()
        self.model.eval()
        return {"loss": loss_sum.double() / len(batch), "accuracy": correct.double() / len(batch)}


def trained_classifier(
    images: Tensor,
    labels: Tensor,
    config: ClassifierConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    num_classes: int = NUM_CLASSES,
) -> InvariantCNN:
    """Train a classifier and return it in eval mode; arguments and errors are those of `ClassifierTrainer`."""
    trainer = ClassifierTrainer(images, labels, config or ClassifierConfig(), seed, device, num_classes)
    for _ in trainer.fit():
        pass
    return trainer.model


def new_classifier(num_classes: int, seed: int, recipe: TrainingRecipe = "published") -> InvariantCNN:
    """Return an untrained classifier, its weights decided by the seed and by the recipe of its training.

    PyTorch's default weights shrink the signal by half in each of the four convolutions; Kaiming's keep it.
    """
    with seeded(seed, "classifier"):
        model = InvariantCNN(num_classes)
        if recipe == "fast":
            for layer in model.convolutions:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)
        return model


def _optimizer(model: InvariantCNN, config: ClassifierConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe, at its highest learning rate."""
    if config.recipe == "fast":
        rate = _FAST_RATE if config.lr is None else config.lr
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=_FAST_DECAY, fused=True)
    return torch.optim.Adadelta(model.parameters(), 1.0 if config.lr is None else config.lr)


def _schedule(config: ClassifierConfig, epoch_steps: int) -> Schedule:
    """Return what a recipe multiplies the learning rate by, from step to step of its optimizer."""
    if config.recipe == "fast":
        return one_cycle(config.epochs * epoch_steps, _FAST_WARMUP)
    return lambda step: math.prod([config.gamma] * (step // epoch_steps))


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
