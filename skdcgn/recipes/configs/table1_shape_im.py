"""The study of the shape mechanism: CGNs trained with modified masks, and the classifiers of a reading."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from skdcgn.configs.cgn import CGNTrainingConfig
from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.counterfactuals import CounterfactualConfig
from skdcgn.configs.fields import PositiveInt, Seed, Seeds, Share, Some, Times
from skdcgn.configs.names import Dataset, Intervention
from skdcgn.counterfactuals.readings import Init, Labels, Reading, When, readings
from skdcgn.errors import InputError
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.runs.identity import derive
from skdcgn.runs.plan import RunConfig


@dataclass(frozen=True)
class ClassifiersConfig(RunConfig):
    """What decides classifiers, whichever reading and seed they have."""

    images: PositiveInt
    """Counterfactuals of a reading."""
    per_mask: Times
    """Of one mask."""
    classifier: ClassifierConfig
    """Training of the digit classifier."""
    two_way_images: PositiveInt
    """Images of each kind, real and counterfactual, that the two-way classifier learns from; three quarters of what
    there is at most."""
    test_images: PositiveInt | None = field(default=None, kw_only=True)
    """Images of each test set; all by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 4:
            raise InputError(f"images is {self.images}: give at least 4, which the two-way classifier needs.")
        if self.test_images is not None and self.test_images < 50:
            raise InputError(
                f"test_images is {self.test_images}: give at least 50, among which are digits of all classes."
            )
        self.classifier.check_batch(images=self.images)


@dataclass(frozen=True)
class ShapeStudyConfig(ClassifiersConfig):
    """Study of the shape mechanism."""

    interventions: Some[Intervention]
    """Modifications of the mask; none is the control."""
    when: Some[When]
    """When masks are modified: while the CGN is trained (as the released script does), while it is sampled, or both.
    For sampling alone it is the given teacher, not trained any more."""
    init: Some[Init]
    """What a CGN is trained from: new weights (as the paper), or the teacher's, with a new discriminator."""
    strengths: tuple[Share, ...]
    """Transparencies beside the paper's 0.75, with permuted labels: the curve for Sec. 4.4's claim."""
    training: CGNTrainingConfig
    """Training of a CGN from new weights; its intervention and seed are overwritten."""
    finetune: CGNTrainingConfig
    """Training from the teacher's weights, likewise."""
    unpermuted_epochs: PositiveInt
    """Its epochs where labels are not permuted: color gives them away, which is soon learned."""
    two_way_epochs: PositiveInt
    """Epochs of the two-way classifier."""
    strengths_when: tuple[When, ...] = ("sampling",)
    """When those are applied."""
    labels: Some[Labels] = ("permuted", "unpermuted")
    """Labels of texture and background: permuted, or the digit's own, as the released sampler leaves them."""
    seeds: Seeds = (0, 1, 2)
    """One CGN and one classifier for each seed and reading."""
    dataset: Dataset = "double_colored"
    """What CGNs are trained on, and classifiers tested on; digits needs no download."""
    teacher: Path | None = None
    """Another checkpoint of the teacher than the authors' (not for digits)."""

    @property
    def teacher_config(self) -> MNISTTeacherConfig:
        """The teacher."""
        return MNISTTeacherConfig(self.dataset, self.teacher)

    def readings(self) -> list[Reading]:
        """Return the readings of each seed, those of one CGN next to each other."""
        return readings(self.interventions, self.when, self.init, self.labels, self.strengths, self.strengths_when)

    def cgn(self, reading: Reading, seed: int) -> "ModifiedCGNConfig | None":
        """Return the config of the CGN of a reading, if it has one trained."""
        if reading.cgn is None:
            return None
        init, intervention, strength = reading.cgn
        training = self.training if init == "scratch" else self.finetune
        training = replace(training, intervention=intervention, intervention_strength=strength, seed=seed)
        return derive(ModifiedCGNConfig, self, teacher=self.teacher_config, init=init, training=training)

    def reading(self, reading: Reading, seed: int) -> "ReadingConfig":
        """Return the config of the classifiers of a reading."""
        epochs = self.classifier.epochs if reading.labels == "permuted" else self.unpermuted_epochs
        own = {"teacher": self.teacher_config, "reading": reading, "seed": seed}
        classifier = replace(self.classifier, epochs=epochs)
        two_way = replace(self.classifier, epochs=self.two_way_epochs)
        return derive(ReadingConfig, self, classifier=classifier, two_way=two_way, **own)


@dataclass(frozen=True)
class ModifiedCGNConfig(RunConfig):
    """Training of the CGN of some readings."""

    teacher: MNISTTeacherConfig
    """Whose data set it learns, and where it may start from."""
    init: Init
    training: CGNTrainingConfig

    @property
    def tags(self) -> dict[str, object]:
        """What tells its run from others."""
        return {"intervention": self.training.intervention, "init": self.init}

    def __str__(self) -> str:
        strength = self.training.intervention_strength
        return f"CGN ({self.init}), {self.training.intervention}{'' if strength is None else f' {strength:g}'}"


@dataclass(frozen=True)
class ReadingConfig(ClassifiersConfig):
    """What the classifiers of one reading and seed depend on, beside the CGN's weights."""

    teacher: MNISTTeacherConfig
    """Whose data set it is; and the CGN, where none is trained."""
    reading: Reading
    two_way: ClassifierConfig
    """Training of the classifier of real and counterfactual images."""
    seed: Seed

    @property
    def counterfactuals(self) -> CounterfactualConfig:
        """The images of the reading."""
        return CounterfactualConfig(
            self.images,
            self.per_mask,
            permute=self.reading.labels == "permuted",
            intervention=self.reading.at_sampling,
            strength=self.reading.strength,
            seed=self.seed,
        )
