"""The cases that more than one MNIST experiment needs: teachers, students, CGNs of our own, images' generators."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from experiments.presets import BASELINES, CGNS, STUDENTS, BaselinesConfig, DistillationConfig, StudentsConfig
from skdcgn.cli import Profile
from skdcgn.data.mnist import Dataset
from skdcgn.files import sha256
from skdcgn.mechanisms import Mechanism
from skdcgn.recipes.cgns import BaselineConfig, CGNConfig, make_baseline, make_cgn
from skdcgn.recipes.composed import ComposedConfig, make_skdcgn
from skdcgn.recipes.ood_robustness import GANRunConfig, Images, RobustnessConfig, make_gan
from skdcgn.recipes.sources import TeacherConfig, teacher_tags
from skdcgn.recipes.students import StudentConfig, make_student
from skdcgn.runs.identity import overrides
from skdcgn.runs.lifecycle import Case, Make
from skdcgn.runtime import Runtime
from skdcgn.tinygan.networks import PUBLISHED_MNIST, load_class_embedding

KD_DESCRIPTION = """Distillation of an MNIST CGN's mechanisms into TinyGAN students (Sec. 4.3).
`heldout/*` and `final/*` are measured on noise that no training saw. Feeds **Figure 7 a-c**, Figure 11 and the MNIST
counterpart of Figure 6."""


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
    teacher = config.load()
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

    Raises:
        InputError: the class embedding is none, or does not fit the student.
    """
    shared = {each.name for each in fields(kind)} & {each.name for each in fields(config)} - {"teacher", "mechanism"}
    given = {name: getattr(config, name) for name in shared} | changes
    own = kind(teacher=teacher.config, mechanism=mechanism.value, seed=seed, **given)
    inputs = dict(teacher.inputs)
    if own.class_embedding is not None:
        load_class_embedding(own.class_embedding, own.student)  # a wrong file is to be told before anything runs
        inputs["class_embedding"] = sha256(own.class_embedding)
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


def generator_case(
    config: RobustnessConfig, dataset: Dataset, source: Images, seed: int, tags: Mapping[str, object]
) -> Case | None:
    """Return the case that trains the generator of a classifier's images, if they have one that is trained here.

    Args:
        config: of the comparison.
        dataset: the MNIST variant.
        source: of the images.
        seed: of the generator.
        tags: of the comparison's own runs.
    """
    own = {"dataset": dataset, "runtime": config.runtime, "seeds": (seed,)}
    if source == "gan":
        own_tags = {"kind": "gan", **tags, "dataset": dataset, "seed": seed, "source": "gan_training"}
        gan = GANRunConfig(config.profile, dataset, replace(config.gan, seed=seed), config.runtime)
        seconds = 0.08 * config.gan.steps
        return Case("ood_robustness", f"{dataset} GAN seed {seed}", gan, make_gan, own_tags, seconds=seconds)
    if source == "baseline":
        return baselines(replace(BASELINES[config.students], **own))[0]
    if source == "skdcgn":
        return distillation(DistillationConfig(config.students, **{**STUDENTS[config.students], **own}))[-1]
    if source == "skdcgn_published":
        published = {**STUDENTS[config.published_students], **own, "student": PUBLISHED_MNIST}
        return distillation(DistillationConfig(config.published_students, **published))[-1]
    return None
