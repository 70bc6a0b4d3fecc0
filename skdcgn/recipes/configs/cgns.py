"""CGNs of our own: teachers for MNIST, the paper's baseline of TinyGANs, the miniature ImageNet CGN."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from skdcgn.configs.cgn import FITTED, CGNTrainingConfig, FitConfig
from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.fields import PositiveInt, Seed, Times
from skdcgn.configs.names import MNIST_CLASSES, MNIST_NOISE, MNIST_SIDE, Dataset
from skdcgn.configs.tinygan import NATIVE_MNIST, TinyGANConfig
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.runs.plan import RunConfig


@dataclass(frozen=True)
class CGNConfig(RunConfig):
    """Training of an MNIST CGN."""

    training: CGNTrainingConfig
    counterfactuals: PositiveInt
    """Counterfactuals that the classifier learns from which judges the CGN."""
    classifier: ClassifierConfig
    """Training of that classifier."""
    dataset: Dataset = "double_colored"
    """What to train on."""
    evaluations: Times = 5
    """Sample sheets during training."""
    test_images: PositiveInt | None = None
    """Images of each test set; by default all 10,000, or of the digits as many as there are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classifier.check_batch(counterfactuals=self.counterfactuals)


@dataclass(frozen=True)
class BaselineConfig(CGNConfig):
    """Training of a CGN with TinyGAN generators."""

    student: TinyGANConfig = NATIVE_MNIST
    """Architecture of the three generators; they draw the data's own 32x32 pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student.check_sizes(resolution=MNIST_SIDE, num_classes=MNIST_CLASSES, noise_dim=MNIST_NOISE)


@dataclass(frozen=True)
class PartConfig(RunConfig):
    """The fit of one part of the miniature ImageNet CGN."""

    teacher: MNISTTeacherConfig
    part: Literal[*FITTED]
    fit: FitConfig
    seed: Seed
    """Of initial weights and noise."""


@dataclass(frozen=True)
class MiniatureConfig(RunConfig):
    """The miniature ImageNet CGN put together."""

    teacher: MNISTTeacherConfig
    seed: Seed
    """That of its parts."""
    per_class: PositiveInt
    """Images of each class that it is scored on."""
    out: Path | None
    """A .safetensors file to write it to as well."""
