"""Classifiers from images of one source, and the GAN that draws some of these."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from skdcgn.configs.classifiers import ClassifierConfig
from skdcgn.configs.counterfactuals import GANConfig
from skdcgn.configs.fields import PositiveInt, Seed, Seeds, Some, Times
from skdcgn.configs.names import Dataset, Profile
from skdcgn.recipes.configs.sources import MNISTTeacherConfig
from skdcgn.runs.plan import RunConfig

Images = Literal["original", "gan", "cgn", "skdcgn", "skdcgn_slim", "skdcgn_published", "baseline"]
"""What a classifier learns from: the biased training images, a conditional GAN's, or counterfactuals of the CGN, of
SKDCGN, of SKDCGN with slim students or with TinyGANs of the published size, or of the baseline."""


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(RunConfig):
    """What decides classifiers, whichever source and seed they have."""

    images: PositiveInt = 100_000
    """Images of each source that a classifier learns from."""
    per_mask: Times = 10
    """Counterfactuals of one mask."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Training of the classifier."""
    generators: PositiveInt = 5
    """Generators trained of each kind (GANs, students, baselines), which the seeds take in turns."""
    test_images: PositiveInt | None = None
    """Images of each test set; by default all 10,000, or of the digits as many as there are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classifier.check_batch(images=self.images)


@dataclass(frozen=True)
class RobustnessConfig(ClassifierRecipe):
    """Comparison of classifiers by the images that they learn from."""

    datasets: Some[Dataset]
    """MNIST variants; digits needs no download."""
    sources: Some[Images]
    """Where training images come from; skdcgn_published are students of the published size, trained as published."""
    students: Profile
    """Profile of the right-sized students and of the baseline."""
    published_students: Profile = "paper"
    """Profile of the students of the published size: one set, for all seeds."""
    seeds: Seeds = (0, 1, 2, 3, 4)
    """One classifier for each seed, source and data set."""
    gan: GANConfig = field(default_factory=GANConfig)
    """Training of the conditional GAN; its seed is overwritten."""

    def generator_seed(self, source: Images, position: int) -> int:
        """Return the seed of the generator that draws the images of the classifier at a position among the seeds."""
        generators = 1 if source == "skdcgn_published" else self.generators
        return self.seeds[position % generators]


@dataclass(frozen=True)
class GANRunConfig(RunConfig):
    """Training of one conditional GAN."""

    dataset: Dataset
    gan: GANConfig


@dataclass(frozen=True, kw_only=True)
class ClassifierRunConfig(ClassifierRecipe):
    """Training of one classifier."""

    teacher: MNISTTeacherConfig
    """Whose data set it is, and for source cgn the CGN."""
    source: Images
    seed: Seed
    """Of images, initial weights, order, and the appearances of the test sets."""


ALL_IMAGES: tuple[Images, ...] = get_args(Images)
