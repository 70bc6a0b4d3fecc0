"""The cases that more than one MNIST experiment needs: teachers, students, CGNs of our own, images' generators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from experiments.presets import (
    BASELINES,
    CGNS,
    STUDENTS,
    BaselinesConfig,
    DistillationConfig,
    MNISTDistillation,
    Students,
    families,
)
from skdcgn.configs.names import MNIST_CLASSES, MNIST_NOISE, Dataset, Mechanism, Perceptual, Profile
from skdcgn.configs.tinygan import PUBLISHED_MNIST
from skdcgn.errors import Unavailable
from skdcgn.files import sha256
from skdcgn.recipes.configs.cgns import BaselineConfig, CGNConfig
from skdcgn.recipes.configs.ood_robustness import GANRunConfig, Images, RobustnessConfig
from skdcgn.recipes.configs.sources import TeacherConfig
from skdcgn.recipes.configs.students import ComposedConfig, StudentConfig
from skdcgn.runs.identity import derive, overrides
from skdcgn.runs.plan import Case, Make
from skdcgn.runtime import Runtime

KD_DESCRIPTION = """Distillation of an MNIST CGN's mechanisms into TinyGAN students (Sec. 4.3).
`heldout/*` and `final/*` are measured on noise that no training saw. Feeds **Figure 7 a-c**, Figure 11 and the MNIST
counterpart of Figure 6."""


class Teacher(NamedTuple):
    """A teacher, as the cases that use it see it."""

    config: TeacherConfig
    tags: Mapping[str, object]
    inputs: Mapping[str, str]
    needs: Mapping[str, Case]
    sizes: Mapping[str, int]
    """What it fixes of its students' architecture."""


def teacher_of(config: TeacherConfig, profile: Profile, runtime: Runtime) -> Teacher:
    """Return a teacher; that of the digits is a case of its own, which trains it.

    Raises:
        InputError: its weights are not available.
    """
    from skdcgn.recipes.sources import teacher_tags

    if config.dataset == "digits" and config.checkpoint is None:
        trained = cgn_case(replace(CGNS[profile], dataset="digits", runtime=runtime))
        tags = {"teacher": "our CGN on digits", "teacher_sha256": trained.identity.digest, "stand_in": True}
        sizes = {"num_classes": MNIST_CLASSES, "noise_dim": MNIST_NOISE}
        return Teacher(config, tags, {}, {"teacher": trained}, sizes)
    teacher = config.load()
    sizes = {"num_classes": teacher.num_classes, "noise_dim": teacher.noise_dim}
    return Teacher(config, teacher_tags(teacher), {"teacher": teacher.sha256}, {}, sizes)


@dataclass(frozen=True)
class Study:
    """What the cases of a study have in common."""

    experiment: str
    """The script's stem."""
    description: str
    """Of the runs, Markdown."""
    tags: Mapping[str, object]
    needs: Mapping[str, Case] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def with_teacher(self, teacher: Teacher) -> "Study":
        """Return the study with a teacher that all of its cases use."""
        return replace(self, tags={**self.tags, **teacher.tags}, needs=teacher.needs, inputs=teacher.inputs)

    def case(
        self,
        kind: str,
        name: str,
        config: Any,
        make: Make,
        needs: Mapping[str, Case] | None = None,
        inputs: Mapping[str, str] | None = None,
        seconds: float = 1.0,
        parallel: bool = False,
        **tags: object,
    ) -> Case:
        """Return a case of the study; see `Case`, to whose tags, needs and inputs the study's are added."""
        return Case(
            self.experiment,
            name,
            config,
            make,
            {"kind": kind, "profile": config.profile, **self.tags, **tags},
            {**self.needs, **(needs or {})},
            {**self.inputs, **(inputs or {})},
            seconds,
            parallel,
            self.description,
        )


def style_inputs(perceptual: Perceptual) -> dict[str, str]:
    """Return what a style loss reads: it does without VGG16 where that cannot be had."""
    from skdcgn.data.weights import locate

    if perceptual != "vgg16":
        return {}
    try:
        return {"perceptual": locate("vgg16").name}
    except Unavailable:
        return {"perceptual": "none"}


def cgn_case(config: CGNConfig) -> Case:
    """Return the case that trains an MNIST CGN: a teacher of our own.

    Raises:
        InputError: there are no real images.
    """
    from skdcgn.data.mnist import check_available
    from skdcgn.recipes.cgns import make_cgn

    check_available(config.dataset)
    description = """Adversarial training of a CGN for an MNIST variant: a teacher of our own.
`final/valid_accuracy` and `final/test_accuracy`: of a classifier that learned from its counterfactuals alone, where
colors or textures tell nothing. `final/authors_*`: the same for the CGN authors' weights, on the same terms.
The sample sheets show, from top to bottom, masks, textures, backgrounds, images, and images with permuted labels."""
    changed = overrides(config, CGNS[config.profile], ("dataset",))
    study = Study("train_cgn_mnist", description, {"overrides": changed, "paper": "Sec. 4.1"})
    return study.case(
        "cgn",
        f"CGN on {config.dataset}",
        config,
        make_cgn,
        inputs=style_inputs(config.training.perceptual),
        seconds=0.03 * config.training.steps + 4e-4 * config.counterfactuals * config.classifier.epochs,
        parallel=True,
        dataset=config.dataset,
        seed=config.training.seed,
        source="cgn",
    )


def students_study(
    experiment: str,
    config: Students,
    defaults: Mapping[Profile, Students],
    scope: Sequence[str],
    paper: str,
    description: str,
) -> Study:
    """Return a study of students, compared or searched.

    Args:
        experiment: the script's stem.
        config: of the script.
        defaults: the script's.
        scope: fields that choose what to run rather than how, beside those of all such studies.
        paper: where the paper speaks of it.
        description: of the runs.

    Raises:
        InputError: the teacher's weights are not available, or the students do not fit it.
    """
    family = config.student.family
    default = families(defaults)[family][config.profile]
    changed = overrides(config, default, ("dataset", "mechanism", "seeds", "teacher", *scope))
    if family != "tinygan":  # the paper's is the one to show where nothing else is asked for
        changed = f"student={family}" if changed == "none" else f"student={family}, {changed}"
    tags = {"dataset": config.dataset, "student": family, "overrides": changed, "paper": paper}
    study = Study(experiment, description, tags)
    teacher = teacher_of(config.teacher_config, config.profile, config.runtime)
    config.student.check_sizes(**teacher.sizes)
    return study.with_teacher(teacher)


def student_case(
    study: Study,
    config: MNISTDistillation,
    mechanism: Mechanism,
    seed: int,
    told_apart: Sequence[str] = (),
    kind: type[StudentConfig] = StudentConfig,
    make: Make | None = None,
    tags: Mapping[str, object] | None = None,
    **changes: Any,
) -> Case:
    """Return the case of one student.

    Args:
        study: that it belongs to.
        config: of the script.
        mechanism: which one it learns.
        seed: its seed.
        told_apart: words in its name that tell it from others of its mechanism and seed.
        kind: of the case's config.
        make: the function that makes the run, by default `make_student`.
        tags: of the run, beside those that every student has.
        changes: fields of the case's config that differ from the script's, or that the script does not have.

    Raises:
        InputError: the class embedding is none, or does not fit the student.
    """
    from skdcgn.recipes.students import make_student
    from skdcgn.tinygan.networks import load_class_embedding

    own = derive(kind, config, teacher=config.teacher_config, mechanism=mechanism.value, seed=seed, **changes)
    family = [] if own.student.family == "tinygan" else [own.student.family]
    inputs = {}
    if own.class_embedding is not None:
        load_class_embedding(own.class_embedding, own.student)  # a wrong file is to be told before anything runs
        inputs["class_embedding"] = sha256(own.class_embedding)
    return study.case(
        "student",
        " ".join([mechanism.value, *family, *told_apart, f"seed {seed}"]),
        own,
        make or make_student,
        inputs=inputs,
        seconds=5 + (0.009 if family else 0.027) * own.distill.for_mechanism(mechanism).steps,
        parallel=True,
        **{"source": "skdcgn", "mechanism": mechanism.value, "seed": seed, **(tags or {})},
    )


def skdcgn_case(study: Study, students: Mapping[Mechanism, Case], seed: int, **tags: object) -> Case:
    """Return the case that puts three students of one seed together."""
    from skdcgn.recipes.composed import make_skdcgn

    own = students[Mechanism.SHAPE].config
    family = "" if own.student.family == "tinygan" else f" {own.student.family}"
    needs = {mechanism.value: case for mechanism, case in students.items()}
    name, config = f"SKDCGN{family} seed {seed}", derive(ComposedConfig, own)
    return study.case("skdcgn", name, config, make_skdcgn, needs, seconds=3, source="skdcgn", seed=seed, **tags)


def distillation(config: DistillationConfig) -> list[Case]:
    """Return the students of every seed, and where they have all mechanisms the three of a seed put together, last."""
    study = students_study("mnist_kd", config, STUDENTS, (), "Sec. 4.3, Fig. 7", KD_DESCRIPTION)
    cases = []
    for seed in config.seeds:
        students = {mechanism: student_case(study, config, mechanism, seed) for mechanism in config.mechanisms}
        cases += students.values()
        if config.mechanism == "all":
            cases.append(skdcgn_case(study, students, seed))
    return cases


def baselines(config: BaselinesConfig) -> list[Case]:
    """Return a case for each seed: the paper's baseline on MNIST, a CGN of TinyGANs.

    Raises:
        InputError: there are no real images.
    """
    from skdcgn.data.mnist import check_available
    from skdcgn.recipes.cgns import make_baseline

    check_available(config.dataset)
    description = """The baseline on MNIST: a CGN with TinyGAN generators, trained without distillation.
`final/valid_accuracy` and `final/test_accuracy`: of a classifier that learned from its counterfactuals alone, where
colors or textures tell nothing. Feeds the robustness table."""
    changed = overrides(config, BASELINES[config.profile], ("dataset", "seeds", "training.seed"))
    study = Study("baseline_mnist", description, {"overrides": changed, "paper": "Sec. 4.2"})
    return [
        study.case(
            "cgn",
            f"baseline seed {seed}",
            derive(BaselineConfig, config, training=replace(config.training, seed=seed)),
            make_baseline,
            inputs=style_inputs(config.training.perceptual),
            seconds=0.06 * config.training.steps + 4e-4 * config.counterfactuals * config.classifier.epochs,
            parallel=True,
            dataset=config.dataset,
            source="baseline",
            seed=seed,
        )
        for seed in config.seeds
    ]


def generator_case(study: Study, config: RobustnessConfig, dataset: Dataset, source: Images, seed: int) -> Case | None:
    """Return the case that trains the generator of a classifier's images, if they have one that is trained here.

    Args:
        study: the comparison.
        config: of the comparison.
        dataset: the MNIST variant.
        source: of the images.
        seed: of the generator.
    """
    from skdcgn.recipes.ood_robustness import make_gan

    own = {"dataset": dataset, "runtime": config.runtime, "seeds": (seed,)}
    if source == "gan":
        gan = derive(GANRunConfig, config, dataset=dataset, gan=replace(config.gan, seed=seed))
        tags = {"dataset": dataset, "source": "gan_training", "seed": seed}
        return study.case("gan", f"{dataset} GAN seed {seed}", gan, make_gan, seconds=0.08 * config.gan.steps, **tags)
    if source == "baseline":
        return baselines(replace(BASELINES[config.students], **own))[0]
    if source == "skdcgn":
        return distillation(replace(STUDENTS[config.students], **own))[-1]
    if source == "skdcgn_slim":
        return distillation(replace(families(STUDENTS)["slim"][config.students], **own))[-1]
    if source == "skdcgn_published":
        return distillation(replace(STUDENTS[config.published_students], **own, student=PUBLISHED_MNIST))[-1]
    return None
