"""Training of CGN's invariant ensemble on real and counterfactual images (Sauer and Geiger, 2021)."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from skdcgn.classifiers.networks import InvariantEnsemble
from skdcgn.configs.classifiers import EnsembleConfig
from skdcgn.configs.counterfactuals import CounterfactualConfig
from skdcgn.counterfactuals.datasets import CounterfactualSet, write
from skdcgn.data.imagenet import ImageSet, center_crop, random_crop, read_image
from skdcgn.errors import InputError
from skdcgn.images import to_float
from skdcgn.mechanisms import Mechanism, Source
from skdcgn.randomness import stream
from skdcgn.runtime import autocast
from skdcgn.training import Trainer, cosine, descend, thirds

_BETAS = (0.9, 0.99)  # of AdamW


def draw_counterfactuals(folder: Path, source: Source, config: EnsembleConfig) -> CounterfactualSet:
    """Draw the counterfactuals that ensembles learn from, unless they are there already.

    Labels and noise are independent for each mechanism. Unlike CGN's MNIST models, its ImageNet model does not shuffle
    patches.

    Args:
        folder: below it each set has a folder of its own.
        source: where the mechanisms come from.
        config: how many, and at which side.

    Raises:
        InputError: there is no room for them on the disk.
    """
    # A random window is cut out of an image somewhat larger, as out of ImageNet's.
    side = source.resolution if config.random_crops else config.resolution
    plan = CounterfactualConfig(config.counterfactuals, per_mask=1, shuffle=False)
    content = json.dumps({"source": source.sha256, "side": side, **asdict(plan)}, sort_keys=True)
    target = folder / hashlib.sha256(content.encode()).hexdigest()[:12]
    if not (target / "index.csv").exists():
        with tqdm(total=plan.n, desc=f"counterfactuals of {source.name}", unit="image") as bar:
            for there, _ in write(target, source, plan, resolution=side):
                bar.update(there - bar.n)
    return CounterfactualSet(target)


class Batch(NamedTuple):
    """Images that an ensemble learns from in one step; pixels are uint8."""

    images: Tensor
    """Real images, (B, 3, H, W)."""
    labels: Tensor
    """(B,)."""
    counterfactuals: Tensor
    """(K, 3, H, W); K = 0 where an ensemble learns from real images alone."""
    mechanism_labels: Tensor
    """(K, 3), in the order of `Mechanism`."""


class Batches(Dataset[Batch]):
    """The batch of every training step: a function of the seed and the step alone, so that a training can resume."""

    def __init__(
        self, real: ImageSet, counterfactuals: CounterfactualSet | None, config: EnsembleConfig, seed: int
    ) -> None:
        self._real, self._counterfactuals, self._config, self._seed = real, counterfactuals, config, seed
        self.per_epoch = max(1, len(real) // config.batch_size)
        self._order: tuple[int, Tensor] | None = None

    def __getitem__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = stream(self._seed, "ensemble", "order", epoch)
            self._order = epoch, torch.randperm(len(self._real), generator=generator)
        size = self._config.batch_size
        chosen = self._order[1][position * size : (position + 1) * size]
        generator = stream(self._seed, "ensemble", "batch", step)
        images = [self._view(read_image(self._real.paths[index]), generator) for index in chosen.tolist()]
        batch = torch.stack(images), self._real.labels[chosen]
        if self._counterfactuals is None:
            return Batch(*batch, batch[0][:0], torch.empty(0, 3, dtype=torch.long))
        count = max(1, round(self._config.counterfactual_ratio * len(chosen)))
        drawn = torch.randint(len(self._counterfactuals), (count,), generator=generator)
        views = [self._view(self._counterfactuals.image(index), generator) for index in drawn.tolist()]
        return Batch(*batch, torch.stack(views), self._counterfactuals.labels[drawn])

    def _view(self, image: Tensor, generator: torch.Generator) -> Tensor:
        side = self._config.resolution
        return random_crop(image, side, generator) if self._config.random_crops else center_crop(image, side)


def ensemble_losses(model: InvariantEnsemble, batch: Batch) -> dict[str, Tensor]:
    """Return the loss terms of a batch, by name.

    `real` is the cross entropy of the heads' averaged logits with the labels of the real images; `shape`, `texture` and
    `background` are those of each head with its mechanism's label of the counterfactual images.
    """
    count = len(batch.labels)
    logits = model(to_float(torch.cat([batch.images, batch.counterfactuals])))
    losses = {"real": F.cross_entropy(logits["ensemble"][:count].float(), batch.labels)}
    if len(batch.mechanism_labels):
        for mechanism, labels in zip(Mechanism, batch.mechanism_labels.T, strict=True):
            losses[mechanism.value] = F.cross_entropy(logits[mechanism.value][count:].float(), labels)
    return losses


class EnsembleTrainer(Trainer[Batch]):
    """Trains an invariant ensemble; see `ensemble_losses`.

    Attributes:
        model: the ensemble, in eval mode after the last step.
    """

    def __init__(
        self,
        model: InvariantEnsemble,
        real: ImageSet,
        counterfactuals: CounterfactualSet | None,
        config: EnsembleConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepare a training.

        Args:
            model: the ensemble, trained in place.
            real: labeled images.
            counterfactuals: beside them; without any, the ensemble learns from real images alone.
            config: how to train.
            seed: of the order of images and their views.
            device: where to train.

        Raises:
            InputError: the images have more classes than the ensemble.
        """
        classes = 1 + int(max(real.labels.max(), counterfactuals.labels.max() if counterfactuals else 0))
        if classes > model.num_classes:
            raise InputError(f"the images are of {classes} classes, and the ensemble has {model.num_classes}.")
        self._batches = Batches(real, counterfactuals, config, seed)
        super().__init__(config.epochs * self._batches.per_epoch)
        self.model = self.register("model", model.to(device, memory_format=torch.channels_last))
        self._config, self._device = config, device
        parameters, options = model.parameters(), {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimizer == "adamw":
            optimizer = torch.optim.AdamW(parameters, betas=_BETAS, **options)
        else:
            optimizer = torch.optim.SGD(parameters, momentum=config.momentum, **options)
        schedule = cosine(self.steps) if config.schedule == "cosine" else thirds(self.steps)
        self._optimizer = self.register_optimizer("optimizer", optimizer, schedule)

    def fit(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train as `Trainer.fit` does, and leave the model in eval mode."""
        yield from super().fit()
        self.model.eval()

    def batches(self) -> Iterator[Batch]:
        """Load the batches of the steps that are still to do."""
        yield from load_in_order(self._batches, range(self.step, self.steps), self._config.workers)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Step the ensemble; return its losses and their `total`."""
        self.model.train()
        if self._config.pretrained:
            for module in self.model.backbone.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
        batch = Batch(*(field.to(self._device, non_blocking=True) for field in batch))
        with autocast(self._device, self._config.precision):
            losses = ensemble_losses(self.model, batch)
        return {**losses, "total": descend(self._optimizer, losses)}


def load_in_order(dataset: Dataset, keys: Sequence[int], workers: int, batch_size: int | None = None) -> DataLoader:
    """Load items of a dataset in order, in other processes if there are workers."""
    return DataLoader(dataset, batch_size, sampler=keys, num_workers=workers, pin_memory=torch.cuda.is_available())
