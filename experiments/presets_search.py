"""What the searches of hyperparameters share: their scale by profile, and how a search is put together."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from experiments.presets import EPOCH_STEPS, EPOCHS, SMOKE_DISTILL, teacher_of
from skdcgn.cli import Profile
from skdcgn.data.mnist import Dataset
from skdcgn.mechanisms import Mechanism
from skdcgn.recipes.students import StudentConfig
from skdcgn.recipes.sweep import DistillationSearch, make_trial
from skdcgn.recipes.teachers import TeacherConfig
from skdcgn.runs.identity import identify, overrides
from skdcgn.runs.search import Definition, Direction, Params, SearchConfig, Space
from skdcgn.runtime import Runtime
from skdcgn.tinygan.distillation import DistillConfig
from skdcgn.tinygan.losses import LossConfig
from skdcgn.tinygan.networks import NATIVE_MNIST, PUBLISHED_MNIST, TinyGANConfig


@dataclass(frozen=True)
class SweepConfig:
    """Search of a distillation's hyperparameters; what is not searched stays as it is here."""

    profile: Profile
    """Scale: smoke (tests), quick (a first look), full (our best answer), paper (the published setting)."""
    student: TinyGANConfig
    distill: DistillConfig
    search: SearchConfig
    confirm_seeds: tuple[int, ...]
    """Fresh seeds, on which the best trial is trained again beside the paper's values."""
    evaluations: int
    """Held-out evaluations during a training: where hopeless trials are stopped."""
    heldout_per_class: int
    """Held-out images of each class."""
    loss: LossConfig = field(default_factory=LossConfig)
    dataset: Dataset = "double_colored"
    """Whose CGN is the teacher: the authors' one for an MNIST variant, or one trained here on scikit-learn's digits."""
    mechanism: Literal["shape", "texture", "background"] = "shape"
    """The mechanism to distill; the objective is held-out IoU for shape, held-out L1 for the others."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""
    seed: int = 0
    """Of every trial's training: one for all, so that trials differ by their parameters alone."""
    out: Path | None = None
    """Folder that gets best.yaml, trials.csv and confirmation.csv, as the study's run does."""
    runtime: Runtime = field(default_factory=Runtime)


_DISTILL = DistillConfig(
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
        distill=replace(_DISTILL, steps=120, per_class=500, warmup=20),
        search=SearchConfig(trials=30),
        confirm_seeds=(1, 2, 3, 4),
        evaluations=5,
        heldout_per_class=50,
    ),
    "full": dict(
        student=NATIVE_MNIST,
        distill=replace(_DISTILL, steps=4000, per_class=2000),
        search=SearchConfig(trials=100),
        confirm_seeds=(1, 2, 3, 4, 5),
        evaluations=10,
        heldout_per_class=50,
    ),
    "paper": dict(
        student=PUBLISHED_MNIST,
        distill=DistillConfig(steps=EPOCHS * EPOCH_STEPS),
        search=SearchConfig(trials=30),
        confirm_seeds=(1, 2, 3, 4, 5),
        evaluations=EPOCHS,
        heldout_per_class=50,
    ),
}
"""Searches by profile: fields of `SweepConfig`. Students are small enough for many of them."""

_SCOPE = ("dataset", "mechanism", "teacher", "search", "confirm_seeds", "out")  # what to run, rather than how


def search_of(
    experiment: str,
    config: SweepConfig,
    default: SweepConfig,
    space: Space,
    first: Sequence[Params],
    references: Mapping[str, Params],
    paper: str,
    description: str,
) -> DistillationSearch:
    """Return a search; the student's parameters are a second objective where `space` has `student.width`.

    Args:
        experiment: the script's stem.
        config: of the script.
        default: the profile's.
        space: what to search.
        first: parameters of the first trials.
        references: what to compare the best trial with, by name; the first one is the paper's.
        paper: where the paper speaks of it.
        description: of every run.

    Raises:
        InputError: the teacher's weights are not available, the study cannot have its name, or the confirmation has no
            fresh seeds.
    """
    teacher = teacher_of(TeacherConfig(config.dataset, config.teacher), config.profile, config.runtime)
    shared = {each.name for each in fields(StudentConfig)} & {each.name for each in fields(config)} - {"teacher"}
    given = {name: getattr(config, name) for name in shared}
    setting = StudentConfig(teacher=teacher.config, frechet=False, **given)
    directions: dict[str, Direction] = {"iou": "maximize"} if config.mechanism == "shape" else {"l1": "minimize"}
    if "student.width" in space:
        directions["parameters"] = "minimize"
    digests = {name: case.identity.digest for name, case in teacher.needs.items()}
    searched = hashlib.sha256(repr(sorted(space.items())).encode()).hexdigest()
    identity = identify(setting, make_trial, {**teacher.inputs, **digests, "search space": searched})
    definition = Definition(
        experiment,
        f"{config.dataset} {config.profile} {config.mechanism} {identity.digest[:6]}"
        if config.search.study is None
        else config.search.study,
        space,
        directions,
        identity,
        first,
        # At first a setting's rank says little about its rank at the end.
        prune_from=config.distill.for_mechanism(Mechanism(config.mechanism)).steps // 2,
        tags={
            "profile": config.profile,
            "dataset": config.dataset,
            "source": "skdcgn",
            **teacher.tags,
            "mechanism": config.mechanism,
            "seed": config.seed,
            "paper": paper,
            "overrides": overrides(config, default, _SCOPE),
        },
        attributes={"seed": config.seed},
        description=description,
    )
    return DistillationSearch(
        definition, setting, config.search, references, config.confirm_seeds, teacher.needs, teacher.inputs, config.out
    )
