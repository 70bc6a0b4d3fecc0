"""What several MNIST experiments share: recipes by profile.

A recipe that belongs to one experiment alone stands in its script.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from skdcgn.configs.cgn import PUBLISHED, CGNTrainingConfig
from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.fields import Seed, Seeds
from skdcgn.configs.names import Dataset, Family, Mechanism, Profile
from skdcgn.configs.slim import SLIM_MNIST
from skdcgn.configs.tinygan import NATIVE_MNIST, PUBLISHED_MNIST, DistillConfig, LossConfig
from skdcgn.errors import InputError
from skdcgn.recipes.configs.cgns import BaselineConfig, CGNConfig
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.recipes.configs.students import Distillation
from skdcgn.runs.plan import SearchConfig

Students = TypeVar("Students", bound=Distillation)

PROFILES: tuple[Profile, ...] = get_args(Profile)
EPOCHS, EPOCH_STEPS = 30, 10_000 // 64
"""The paper's training of a student on MNIST."""


@dataclass(frozen=True, kw_only=True)
class MNISTDistillation(Distillation):
    """Students of an MNIST CGN."""

    dataset: Dataset = "double_colored"
    """Whose CGN is the teacher: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""

    @property
    def teacher_config(self) -> MNISTTeacherConfig:
        """The teacher."""
        return MNISTTeacherConfig(self.dataset, self.teacher)


@dataclass(frozen=True, kw_only=True)
class StudentsConfig(MNISTDistillation):
    """What every study of students has in its config; a study adds the field that it varies."""

    seeds: Seeds = (0,)
    """One student for each seed, mechanism and case of the study."""
    mechanism: Literal["shape", "texture", "background", "all"] = "all"
    """The mechanism to distill."""

    @property
    def mechanisms(self) -> list[Mechanism]:
        """The mechanisms that `mechanism` stands for."""
        return list(Mechanism) if self.mechanism == "all" else [Mechanism(self.mechanism)]


@dataclass(frozen=True)
class DistillationConfig(StudentsConfig):
    """Distillation of an MNIST CGN."""

    class_embedding: Path | None = None
    """A .npy file with the class embedding to start from, such as BigGAN's."""


# The right-sized recipe: pixel distance and KL alone (Eq. 2 and 6), a high learning rate that falls to 0.
NATIVE_LOSS = LossConfig(feature=0.0, lambda_1=1.0, lambda_1_decay=0.0, lambda_2=0.0, kl=1.0)
NATIVE_DISTILL = DistillConfig(
    steps=3000,
    texture_steps=2000,
    batch_size=32,
    learning_rate=1.2e-2,
    texture_learning_rate=3e-3,
    betas=(0.9, 0.99),
    schedule="cosine",
    per_class=1500,
)
SMOKE_DISTILL = DistillConfig(
    steps=12, learning_rate=3e-3, schedule="cosine", batch_size=8, per_class=4, discriminator_width=8
)


def families(defaults: Mapping[Profile, Students]) -> Mapping[Family, Mapping[Profile, Students]]:
    """Return a study's defaults for each family of students.

    Slim ones take the objective, the number of steps and the data of the others, and learning rates of their own.
    """
    slim = {}
    for profile, given in defaults.items():
        student = replace(SLIM_MNIST, mask_channels=given.student.mask_channels)
        rates = {"learning_rate": 2e-2, "texture_learning_rate": 2e-2, "betas": (0.9, 0.99), "schedule": "cosine"}
        slim[profile] = replace(given, student=student, distill=replace(given.distill, **rates))
    return {"tinygan": defaults, "slim": slim}


STUDENTS: Mapping[Profile, DistillationConfig] = {
    "smoke": DistillationConfig(
        "smoke", NATIVE_MNIST, SMOKE_DISTILL, loss=LossConfig(kl=1.0), heldout_per_class=10, evaluations=2
    ),
    "quick": DistillationConfig("quick", NATIVE_MNIST, NATIVE_DISTILL, loss=NATIVE_LOSS, seeds=(0, 1, 2)),
    "full": DistillationConfig(
        "full",
        NATIVE_MNIST,
        replace(NATIVE_DISTILL, steps=40_000, texture_steps=20_000, per_class=10_000),
        loss=NATIVE_LOSS,
        heldout_per_class=500,
        evaluations=10,
    ),
    "paper": DistillationConfig(
        "paper", PUBLISHED_MNIST, DistillConfig(steps=EPOCHS * EPOCH_STEPS), evaluations=EPOCHS
    ),
}
"""Students of an MNIST CGN, by profile."""

# The paper's objectives on the native student: its learning rate of 2e-4 would need its number of steps.
_OBJECTIVES = DistillConfig(
    steps=EPOCHS * (10_000 // 32), batch_size=32, learning_rate=3e-3, schedule="cosine", discriminator_width=16
)
_FAST_DECAY = LossConfig(lambda_1_decay=0.1)  # lambda_1 falls to 0 after two thirds of the training
_SMOKE_OBJECTIVES = replace(_OBJECTIVES, steps=30, batch_size=8, per_class=8, discriminator_width=8)
_QUICK_OBJECTIVES = replace(_OBJECTIVES, steps=180, learning_rate=8e-3, per_class=192)

OBJECTIVES: Mapping[Profile, Mapping[str, Any]] = {
    "smoke": dict(student=NATIVE_MNIST, distill=_SMOKE_OBJECTIVES, loss=_FAST_DECAY, heldout_per_class=10),
    "quick": dict(
        student=NATIVE_MNIST, distill=_QUICK_OBJECTIVES, loss=_FAST_DECAY, seeds=(0, 1, 2), heldout_per_class=20
    ),
    "full": dict(student=NATIVE_MNIST, distill=_OBJECTIVES, seeds=(0, 1, 2, 3, 4)),
    "paper": dict(student=PUBLISHED_MNIST, distill=DistillConfig(steps=EPOCHS * EPOCH_STEPS), seeds=(0, 1, 2, 3, 4)),
}
"""Students where objectives are compared, by profile; all of Appendix D's objectives have a discriminator."""

GRAY_OBJECTIVES = {
    profile: {**given, "student": replace(given["student"], mask_channels=3)} for profile, given in OBJECTIVES.items()
}
"""The same with masks drawn as gray RGB, as the published students do: the published teacher set holds them so."""

CGNS: Mapping[Profile, CGNConfig] = {
    "smoke": CGNConfig("smoke", CGNTrainingConfig(steps=20), 200, ClassifierConfig(epochs=1), test_images=500),
    "quick": CGNConfig("quick", CGNTrainingConfig(steps=2400), 8000, ClassifierConfig(epochs=4)),
    "full": CGNConfig("full", CGNTrainingConfig(steps=16_000), 100_000, ClassifierConfig()),
    "paper": CGNConfig("paper", PUBLISHED, 100_000, ClassifierConfig()),
}
"""CGNs of our own, by profile."""


@dataclass(frozen=True)
class BaselinesConfig(BaselineConfig):
    """Training of CGNs with TinyGAN generators; `training.seed` is overwritten by each of `seeds`."""

    seeds: Seeds = (0,)
    """One baseline for each seed."""


BASELINES: Mapping[Profile, BaselinesConfig] = {
    profile: BaselinesConfig(**vars(cgn), seeds=(0, 1, 2, 3, 4) if profile in ("full", "paper") else (0,))
    for profile, cgn in CGNS.items()
}
"""The paper's baseline on MNIST, by profile."""


@dataclass(frozen=True)
class SweepConfig(MNISTDistillation):
    """Search of a distillation's hyperparameters; what is not searched stays as it is here."""

    search: SearchConfig = field(default_factory=SearchConfig)
    confirm_seeds: Seeds = (1, 2, 3, 4, 5)
    """Fresh seeds, on which the best trial is trained again beside the paper's values."""
    mechanism: Literal["shape", "texture", "background"] = "shape"
    """The mechanism to distill; the objective is held-out IoU for shape, held-out L1 for the others."""
    seed: Seed = 0
    """Of every trial's training: one for all, so that trials differ by their parameters alone."""
    out: Path | None = None
    """Folder that gets best.yaml, trials.csv and confirmation.csv, as the study's run does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed in self.confirm_seeds:
            raise InputError(f"confirm_seeds is {self.confirm_seeds}: give seeds that no trial has, not {self.seed}.")


_TRIAL = DistillConfig(
    batch_size=32,
    learning_rate=1e-2,
    betas=(0.5, 0.99),
    schedule="cosine",
    discriminator_width=16,
)

SEARCHES: Mapping[Profile, Mapping[str, Any]] = {
    "smoke": dict(
        student=NATIVE_MNIST,
        distill=replace(SMOKE_DISTILL, steps=6),
        search=SearchConfig(trials=3),
        confirm_seeds=(1, 2, 3),
        evaluations=2,
        heldout_per_class=10,
    ),
    "quick": dict(
        student=NATIVE_MNIST,
        distill=replace(_TRIAL, steps=120, per_class=500, warmup=20),
        confirm_seeds=(1, 2, 3, 4),
        heldout_per_class=50,
    ),
    "full": dict(
        student=NATIVE_MNIST,
        distill=replace(_TRIAL, steps=4000, per_class=2000),
        search=SearchConfig(trials=100),
        evaluations=10,
        heldout_per_class=50,
    ),
    "paper": dict(
        student=PUBLISHED_MNIST,
        distill=DistillConfig(steps=EPOCHS * EPOCH_STEPS),
        evaluations=EPOCHS,
        heldout_per_class=50,
    ),
}
"""Searches by profile: fields of `SweepConfig`. Students are small enough for many of them."""
