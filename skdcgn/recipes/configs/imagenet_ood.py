"""CGN's invariant ensemble from real images and counterfactuals."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from skdcgn.configs.classifiers import EnsembleConfig
from skdcgn.configs.fields import PositiveInt, Seed, Seeds, Some, Times
from skdcgn.recipes.configs.sources import ImageNetTeacherConfig
from skdcgn.runs.plan import RunConfig

EnsembleSource = Literal["original", "cgn", "skdcgn", "baseline"]
"""What an ensemble learns from: real images alone, or counterfactuals of the CGN, its students, or the baseline too."""
ALL_SOURCES: tuple[EnsembleSource, ...] = get_args(EnsembleSource)


@dataclass(frozen=True)
class EnsembleRecipe(RunConfig):
    """What decides ensembles, whichever source and seed they have."""

    training: EnsembleConfig
    evaluations: Times
    """Times at which the validation accuracy is measured."""
    images: PositiveInt = 100
    """Training images of each class of the miniature pictures; of their test sets, half as many."""
    imagenet: Path | None = None
    """ImageNet: a folder with train and val."""
    in9: Path | None = None
    """IN-9: the unpacked backgrounds challenge, with its in_to_in9.json put into it."""
    cue_conflict: Path | None = None
    """The cue-conflict stimuli: a folder with one folder for each shape."""
    backbone: Path | None = None
    """Weights of a ResNet-50 trained on ImageNet, in torchvision's format."""


@dataclass(frozen=True)
class EnsemblesConfig(EnsembleRecipe):
    """Robustness of the invariant ensemble."""

    seeds: Seeds = (0, 1, 2)
    """One ensemble for each seed and source. The counterfactuals of a source are the same for all seeds."""
    sources: Some[EnsembleSource] = ALL_SOURCES
    """original: real images alone; the others: counterfactuals beside them."""
    teacher: Path | None = None
    """Another file in the format of cgn.pth."""


@dataclass(frozen=True, kw_only=True)
class EnsembleRunConfig(EnsembleRecipe):
    """What decides one ensemble, beside weights and images."""

    teacher: ImageNetTeacherConfig
    source: EnsembleSource
    seed: Seed
    """Of initial weights, order and views of the images."""
