"""What several MNIST experiments share: recipes by profile, and the cases that more than one of them needs.

A recipe that belongs to one experiment alone stands in its script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from skdcgn.cgn.adversarial import PUBLISHED, CGNTrainingConfig
from skdcgn.classifiers.invariant import ClassifierConfig
from skdcgn.cli import Profile
from skdcgn.data.mnist import Dataset
from skdcgn.files import sha256
from skdcgn.mechanisms import Mechanism
from skdcgn.recipes.cgns import BaselineConfig, CGNConfig, make_baseline, make_cgn
from skdcgn.recipes.composed import ComposedConfig, make_skdcgn
from skdcgn.recipes.students import StudentConfig, make_student
from skdcgn.recipes.teachers import TeacherConfig, load_teacher, teacher_tags
from skdcgn.runs.identity import overrides
from skdcgn.runs.lifecycle import Case, Make
from skdcgn.runtime import Runtime
from skdcgn.tinygan.distillation import DistillConfig
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import NATIVE_MNIST, PUBLISHED_MNIST, TinyGANConfig

PROFILES: tuple[Profile, ...] = get_args(Profile)
EPOCHS, EPOCH_STEPS = 30, 10_000 // 64
"""The paper's training of a student on MNIST."""


@dataclass(frozen=True)
class StudentsConfig:
    """What every study of students has in its config; a study adds the field that it varies."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    student: TinyGANConfig
    distill: DistillConfig
    loss: LossConfig
    seeds: tuple[int, ...]
    """One student for each seed, mechanism and case of the study."""
    heldout_per_class: int
    """Held-out images of each class."""
    evaluations: int | tuple[float, ...] = 5
    """Held-out evaluations during training: how many, or at which fractions of it."""
    dataset: Dataset = "double_colored"
    """Whose CGN is the teacher: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    mechanism: Literal["shape", "texture", "background", "all"] = "all"
    """The mechanism to distill."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""
    runtime: Runtime = field(default_factory=Runtime)

    @property
    def mechanisms(self) -> list[Mechanism]:
        """The mechanisms that `mechanism` stands for."""
        return list(Mechanism) if self.mechanism == "all" else [Mechanism(self.mechanism)]

    @property
    def teacher_config(self) -> TeacherConfig:
        """The teacher."""
        return TeacherConfig(self.dataset, self.teacher)


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

STUDENTS: Mapping[Profile, Mapping[str, Any]] = {
    "smoke": dict(
        student=NATIVE_MNIST,
        distill=SMOKE_DISTILL,
        loss=LossConfig(kl=1.0),
        seeds=(0,),
        heldout_per_class=10,
        evaluations=2,
    ),
    "quick": dict(
        student=NATIVE_MNIST,
        distill=NATIVE_DISTILL,
        loss=NATIVE_LOSS,
        seeds=(0, 1, 2),
        heldout_per_class=100,
        evaluations=5,
    ),
    "full": dict(
        student=NATIVE_MNIST,
        distill=replace(NATIVE_DISTILL, steps=40_000, texture_steps=20_000, per_class=10_000),
        loss=NATIVE_LOSS,
        seeds=(0,),
        heldout_per_class=500,
        evaluations=10,
    ),
    "paper": dict(
        student=PUBLISHED_MNIST,
        distill=DistillConfig(steps=EPOCHS * EPOCH_STEPS),
        loss=LossConfig(),
        seeds=(0,),
        heldout_per_class=100,
        evaluations=EPOCHS,
    ),
}
"""Students by profile: fields of `StudentsConfig`."""

# The paper's objectives on the native student: its learning rate of 2e-4 would need its number of steps.
_OBJECTIVES = DistillConfig(
    steps=EPOCHS * (10_000 // 32), batch_size=32, learning_rate=3e-3, schedule="cosine", discriminator_width=16
)
_FAST_DECAY = LossConfig(lambda_1_decay=0.1)  # lambda_1 falls to 0 after two thirds of the training
_SMOKE_OBJECTIVES = replace(_OBJECTIVES, steps=30, batch_size=8, per_class=8, discriminator_width=8)
_QUICK_OBJECTIVES = replace(_OBJECTIVES, steps=180, learning_rate=8e-3, per_class=192)

OBJECTIVES: Mapping[Profile, Mapping[str, Any]] = {
    "smoke": dict(student=NATIVE_MNIST, distill=_SMOKE_OBJECTIVES, loss=_FAST_DECAY, seeds=(0,), heldout_per_class=10),
    "quick": dict(
        student=NATIVE_MNIST, distill=_QUICK_OBJECTIVES, loss=_FAST_DECAY, seeds=(0, 1, 2), heldout_per_class=20
    ),
    "full": dict(
        student=NATIVE_MNIST, distill=_OBJECTIVES, loss=LossConfig(), seeds=(0, 1, 2, 3, 4), heldout_per_class=100
    ),
    "paper": dict(
        student=PUBLISHED_MNIST,
        distill=DistillConfig(steps=EPOCHS * EPOCH_STEPS),
        loss=LossConfig(),
        seeds=(0, 1, 2, 3, 4),
        heldout_per_class=100,
    ),
}
"""Students where objectives are compared, by profile; all of Appendix D's objectives have a discriminator."""

CGNS: Mapping[Profile, CGNConfig] = {
    "smoke": CGNConfig("smoke", CGNTrainingConfig(steps=20), 200, ClassifierConfig(epochs=1)),
    "quick": CGNConfig("quick", CGNTrainingConfig(steps=2400), 8000, ClassifierConfig(epochs=4)),
    "full": CGNConfig("full", CGNTrainingConfig(steps=16_000), 100_000, ClassifierConfig()),
    "paper": CGNConfig("paper", PUBLISHED, 100_000, ClassifierConfig()),
}
"""CGNs of our own, by profile."""


class Teacher(NamedTuple):
    """A teacher, as the cases that use it see it."""

    config: TeacherConfig
    tags: Mapping[str, object]
    inputs: Mapping[str, str]
    needs: Mapping[str, Case]


def teacher_of(config: TeacherConfig, profile: Profile, runtime: Runtime) -> Teacher:
    """Return a teacher; that of the digits is a case of its own, which trains it.

    Raises:
        InputError: its weights are not available.
    """
    if config.dataset == "digits" and config.checkpoint is None:
        trained = cgn_case(replace(CGNS[profile], dataset="digits", runtime=runtime))
        tags = {"teacher": "our CGN on digits", "teacher_sha256": trained.identity.digest, "stand_in": True}
        return Teacher(config, tags, {}, {"teacher": trained})
    teacher = load_teacher(config)
    return Teacher(config, teacher_tags(teacher), {"teacher": teacher.sha256}, {})


def cgn_case(config: CGNConfig) -> Case:
    """Return the case that trains an MNIST CGN: a teacher of our own."""
    return Case(
        "train_cgn_mnist",
        f"CGN on {config.dataset}",
        config,
        make_cgn,
        {
            "kind": "cgn",
            "profile": config.profile,
            "dataset": config.dataset,
            "seed": config.training.seed,
            "source": "cgn",
            "overrides": overrides(config, CGNS[config.profile], ("dataset",)),
            "paper": "Sec. 4.1",
        },
        seconds=0.03 * config.training.steps + 4e-4 * config.counterfactuals * config.classifier.epochs,
        description="""Adversarial training of a CGN for an MNIST variant: a teacher of our own.
`final/valid_accuracy` and `final/test_accuracy`: of a classifier that learned from its counterfactuals alone, where
colors or textures tell nothing. `final/authors_*`: the same for the CGN authors' weights, on the same terms.
The sample sheets show, from top to bottom, masks, textures, backgrounds, images, and images with permuted labels.""",
    )


def student_case(
    experiment: str,
    config: StudentsConfig,
    teacher: Teacher,
    mechanism: Mechanism,
    seed: int,
    tags: Mapping[str, object],
    description: str,
    told_apart: Sequence[str] = (),
    kind: type[StudentConfig] = StudentConfig,
    make: Make = make_student,
    **changes: Any,
) -> Case:
    """Return the case of one student.

    Args:
        experiment: the script's stem.
        config: of the script.
        teacher: see `teacher_of`.
        mechanism: which one it learns.
        seed: its seed.
        tags: of the run, beside those that every student has.
        description: of the run.
        told_apart: words in its name that tell it from others of its mechanism and seed.
        kind: of the case's config.
        make: the function that makes the run.
        changes: fields of the case's config that differ from the script's, or that the script does not have.
    """
    shared = {each.name for each in fields(kind)} & {each.name for each in fields(config)} - {"teacher", "mechanism"}
    given = {name: getattr(config, name) for name in shared} | changes
    own = kind(teacher=teacher.config, mechanism=mechanism.value, seed=seed, **given)
    inputs = {**teacher.inputs, **({"class_embedding": sha256(own.class_embedding)} if own.class_embedding else {})}
    common = {"kind": "student", "profile": config.profile, "dataset": config.dataset, "source": "skdcgn"}
    return Case(
        experiment,
        " ".join([mechanism.value, *told_apart, f"seed {seed}"]),
        own,
        make,
        {**common, **teacher.tags, "mechanism": mechanism.value, "seed": seed, **tags},
        teacher.needs,
        inputs,
        seconds=5 + 0.027 * own.distill.for_mechanism(mechanism).steps,
        parallel=True,
        description=description,
    )


def skdcgn_case(
    experiment: str,
    students: Mapping[Mechanism, Case],
    teacher: Teacher,
    seed: int,
    tags: Mapping[str, object],
    description: str,
    classes: str = "all",
) -> Case:
    """Return the case that puts three students of one seed together."""
    first = students[Mechanism.SHAPE].config
    common = {"kind": "skdcgn", "source": "skdcgn", "seed": seed, "dataset": teacher.config.dataset}
    return Case(
        experiment,
        f"SKDCGN seed {seed}",
        ComposedConfig(first.profile, teacher.config, seed, classes, first.runtime),
        make_skdcgn,
        {**common, "profile": first.profile, **teacher.tags, **tags},
        {**teacher.needs, **{mechanism.value: case for mechanism, case in students.items()}},
        teacher.inputs,
        seconds=3,
        description=description,
    )


KD_DESCRIPTION = """Distillation of an MNIST CGN's mechanisms into TinyGAN students (Sec. 4.3).
`heldout/*` and `final/*` are measured on noise that no training saw. Feeds **Figure 7 a-c**, Figure 11 and the MNIST
counterpart of Figure 6."""


@dataclass(frozen=True)
class DistillationConfig(StudentsConfig):
    """Distillation of an MNIST CGN."""

    class_embedding: Path | None = None
    """A .npy file with the class embedding to start from, such as BigGAN's."""


def distillation(config: DistillationConfig) -> list[Case]:
    """Return the students of every seed, and where they have all mechanisms the three of a seed put together, last."""
    teacher = teacher_of(config.teacher_config, config.profile, config.runtime)
    default = DistillationConfig(config.profile, **STUDENTS[config.profile])
    tags = {
        "overrides": overrides(config, default, ("dataset", "mechanism", "seeds", "teacher")),
        "paper": "Sec. 4.3, Fig. 7",
    }
    cases = []
    for seed in config.seeds:
        students = {
            mechanism: student_case("mnist_kd", config, teacher, mechanism, seed, tags, KD_DESCRIPTION)
            for mechanism in config.mechanisms
        }
        cases += students.values()
        if config.mechanism == "all":
            cases.append(skdcgn_case("mnist_kd", students, teacher, seed, tags, KD_DESCRIPTION))
    return cases


@dataclass(frozen=True)
class BaselinesConfig(BaselineConfig):
    """Training of CGNs with TinyGAN generators; `training.seed` is overwritten by each of `seeds`."""

    seeds: tuple[int, ...] = (0,)
    """One baseline for each seed."""


BASELINES: Mapping[Profile, BaselinesConfig] = {
    profile: BaselinesConfig(**vars(cgn), seeds=(0, 1, 2, 3, 4) if profile in ("full", "paper") else (0,))
    for profile, cgn in CGNS.items()
}
"""The paper's baseline on MNIST, by profile."""


def baselines(config: BaselinesConfig) -> list[Case]:
    """Return a case for each seed: the paper's baseline on MNIST, a CGN of TinyGANs."""
    tags = {
        "kind": "cgn",
        "profile": config.profile,
        "dataset": config.dataset,
        "source": "baseline",
        "overrides": overrides(config, BASELINES[config.profile], ("dataset", "seeds", "training.seed")),
        "paper": "Sec. 4.2",
    }
    shared = {each.name: getattr(config, each.name) for each in fields(BaselineConfig)}
    return [
        Case(
            "baseline_mnist",
            f"baseline seed {seed}",
            BaselineConfig(**{**shared, "training": replace(config.training, seed=seed)}),
            make_baseline,
            {**tags, "seed": seed},
            seconds=0.06 * config.training.steps + 4e-4 * config.counterfactuals * config.classifier.epochs,
            description="""The baseline on MNIST: a CGN with TinyGAN generators, trained without distillation.
`final/valid_accuracy` and `final/test_accuracy`: of a classifier that learned from its counterfactuals alone, where
colors or textures tell nothing. Feeds the robustness table.""",
        )
        for seed in config.seeds
    ]
