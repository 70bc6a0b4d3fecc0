"""The distillation of students, and three of them put together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from skdcgn.configs.fields import Evaluations, Fraction, NonNegativeFloat, PositiveInt, Seed
from skdcgn.configs.names import Mechanism
from skdcgn.configs.slim import SlimConfig
from skdcgn.configs.tinygan import DistillConfig, LossConfig, TinyGANConfig
from skdcgn.errors import InputError
from skdcgn.recipes.configs.sources import TeacherConfig
from skdcgn.runs.plan import RunConfig


@dataclass(frozen=True)
class Distillation(RunConfig):
    """What decides students, whichever mechanism of which teacher they learn."""

    student: TinyGANConfig | SlimConfig
    distill: DistillConfig
    loss: LossConfig = field(default_factory=LossConfig, kw_only=True)
    heldout_per_class: PositiveInt = field(default=100, kw_only=True)
    """Held-out images of each class."""
    evaluations: Evaluations = field(default=5, kw_only=True)
    """Held-out evaluations during training: how many, or at which fractions of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student.check_sizes()
        if self.loss.feature:
            self.student.check_levels(self.loss.alphas)
        if self.loss.real:
            raise InputError(f"loss.real is {self.loss.real}: give 0, for students learn from no real images.")


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Distillation):
    """What decides one student, beside the weights of its teacher."""

    teacher: TeacherConfig
    mechanism: Literal["shape", "texture", "background"]
    seed: Seed
    """Of initial weights and training noise."""
    frechet: bool = True
    """Measure the Fréchet distance too."""
    classes: str = "all"
    """The labels to learn, see `data.labels.select_classes`."""
    class_embedding: Path | None = None
    """A .npy file with the class embedding to start from, such as BigGAN's."""
    teacher_sets: Path | None = None
    """Folder of stored teacher sets; by default one beside the run store."""

    def __post_init__(self) -> None:
        from skdcgn.data.labels import select_classes

        super().__post_init__()
        classes = len(select_classes(self.classes, Mechanism(self.mechanism), self.student.num_classes))
        self.distill.check_records(classes)
        if self.frechet and self.heldout_per_class * classes < 2:
            raise InputError("heldout_per_class is 1: give more, for the Fréchet distance needs two images.")


@dataclass(frozen=True, kw_only=True)
class ConvergenceConfig(StudentConfig):
    """A student whose speed is measured: when its held-out fidelity reaches a target."""

    target_iou: Fraction = 0.5
    """Mask IoU (shape)."""
    target_l1: NonNegativeFloat = 0.05
    """L1 (texture, background)."""


@dataclass(frozen=True)
class ClassMeansConfig(RunConfig):
    """A student that ignores its noise: each class's mean of the teacher's held-out images."""

    teacher: TeacherConfig
    mechanism: Literal["shape", "texture", "background"]
    heldout_per_class: PositiveInt


@dataclass(frozen=True)
class ComposedConfig(RunConfig):
    """What decides the run, beside its students."""

    teacher: TeacherConfig
    seed: Seed
    """That of the students."""
    classes: str = "all"
    """The labels that they learned, see `data.labels.select_classes`."""
