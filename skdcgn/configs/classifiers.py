"""Classifiers: CGN's invariant one for MNIST, and its ensemble for ImageNet."""

from dataclasses import dataclass
from typing import Literal

from skdcgn.configs.fields import (
    Checked,
    Decay,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SeveralInt,
    Threads,
)
from skdcgn.configs.names import Backbone, Precision
from skdcgn.errors import InputError

TrainingRecipe = Literal["published", "fast"]


@dataclass(frozen=True)
class ClassifierConfig(Checked):
    """How the invariant classifier is trained; the defaults are CGN's, in bf16."""

    recipe: TrainingRecipe = "published"
    """published: PyTorch's initial weights, Adadelta, and a factor on the learning rate after each epoch, as CGN has
    it. fast: Kaiming's initial weights, AdamW, and one cycle of the learning rate over all steps: it learns from the
    first step on, where the published training stays at chance for a while that is luck. The network is the same."""
    epochs: PositiveInt = 10
    """Passes over the images."""
    batch_size: PositiveInt = 64
    """Images in a step; the last step of an epoch takes what is left."""
    lr: PositiveFloat | None = None
    """Learning rate; by default the recipe's: 1 of Adadelta, 0.003 of AdamW."""
    gamma: Fraction = 0.7
    """Factor on the learning rate after each epoch (published recipe)."""
    precision: Precision = "bf16"
    """bf16 mixed precision takes 0.7 of the time of fp32 on a CPU, at an accuracy 0.2 points lower (two seeds)."""

    def check_batch(self, **images: int) -> None:
        """Raise InputError where a batch is larger than all images, given by the name of their field."""
        for name, count in images.items():
            if self.batch_size > count:
                raise InputError(
                    f"the classifier's batch_size is {self.batch_size}: give no more than {name}, which is {count}."
                )


@dataclass(frozen=True)
class EnsembleConfig(Checked):
    """How the invariant ensemble is trained; the defaults are CGN's."""

    backbone: Backbone = "resnet50"
    """resnet50 (torchvision's), or small for 32x32 images."""
    pretrained: bool = True
    """Start from a backbone trained on ImageNet, and leave its batch normalization as it is."""
    resolution: PositiveInt = 224
    """Side of the images that the network sees."""
    epochs: PositiveInt = 45
    """Passes over the real images."""
    batch_size: SeveralInt = 256
    """Real images in a step."""
    counterfactual_ratio: PositiveFloat = 1.0
    """Counterfactual images in a step, for each real one."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """adamw needs fewer steps where a backbone starts from nothing."""
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["thirds", "cosine"] = "thirds"
    """Learning rate: to a tenth after each third of the training, or along a cosine to 0."""
    momentum: Decay = 0.9
    """Of SGD."""
    weight_decay: NonNegativeFloat = 1e-4
    random_crops: bool = True
    """Random windows and flips of the training images."""
    counterfactuals: PositiveInt = 200_000
    """Counterfactual images, drawn once and kept on disk (150 kB each at 224x224)."""
    precision: Precision = "bf16"
    workers: Threads = 8
    """Processes that read training images."""
