"""TinyGAN students: their architecture (paper Sec. A.2), their objective (Eq. 7) and how they are trained."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from skdcgn.configs.architecture import Architecture
from skdcgn.configs.fields import (
    Betas,
    Blocks,
    Checked,
    Decay,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SeveralInt,
    Weights,
)
from skdcgn.configs.names import Family, Mechanism, Precision
from skdcgn.errors import InputError

LabelInput = Literal["none", "one_hot", "embedding"]
FeatureDistance = Literal["l1", "kl", "mse"]
"""The keys of `tinygan.losses.FEATURE_DISTANCES`."""
KLOn = Literal["pixels", "image", "activations"]
"""The keys of `tinygan.losses.KL_DIVERGENCES`."""
KLDirection = Literal["teacher_student", "student_teacher"]


@dataclass(frozen=True, kw_only=True)
class TinyGANConfig(Architecture):
    """Architecture of a TinyGAN generator."""

    family: ClassVar[Family] = "tinygan"

    width: PositiveInt = 16
    """Channels of the last block (c in the paper's tables)."""
    blocks: Blocks = 3
    """Residual blocks (R), each doubling the side: the first feature map is resolution / 2^R wide."""
    label_input: LabelInput = "embedding"
    """How the label joins the noise at the input: a trainable embedding, a one-hot vector, or not at all."""
    label_dim: PositiveInt = 10
    """Width of that trainable embedding."""
    class_dim: PositiveInt = 10
    """Width of the class embedding that the conditional batch norms read."""
    class_rows: PositiveInt = 10
    """Rows of the class embedding (the original keeps ImageNet's 1000 even on MNIST)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution % 2**self.blocks:
            raise InputError(
                f"a TinyGAN of {self.blocks} blocks cannot draw {self.resolution}x{self.resolution} images: give a "
                f"resolution that is a multiple of {2**self.blocks}, or fewer blocks."
            )
        if self.class_rows < self.num_classes:
            raise InputError(f"class_rows is {self.class_rows}: give at least the {self.num_classes} of num_classes.")

    @property
    def input_dim(self) -> int:
        """Length of the generator's input vector: noise and label."""
        return self.noise_dim + {"none": 0, "one_hot": self.num_classes, "embedding": self.label_dim}[self.label_input]

    @property
    def levels(self) -> int:
        """Layers of its discriminator: one for each block."""
        return self.blocks

    @property
    def discriminator_classes(self) -> int:
        """Rows of its discriminator's class embedding."""
        return self.class_rows


NATIVE_MNIST = TinyGANConfig()
"""Right-sized student for MNIST: 32x32, smaller than the teacher's mechanism that it distils."""


PUBLISHED_MNIST = TinyGANConfig(
    resolution=64, width=32, blocks=5, label_input="one_hot", class_dim=128, class_rows=1000, mask_channels=3
)
"""The paper's MNIST student, 2,101,955 parameters.

Its 42-d input was the teacher's own noise beside the teacher's own label embedding. Under black-box access that
embedding cannot be read; a one-hot label holds the same information in the same 10 places.
"""


PUBLISHED_IMAGENET = TinyGANConfig(
    resolution=256,
    width=32,
    blocks=5,
    noise_dim=128,
    label_input="none",
    class_dim=128,
    class_rows=1000,
    num_classes=1000,
    mask_channels=3,
)
"""The paper's ImageNet student, 6,240,963 parameters."""


@dataclass(frozen=True)
class LossConfig(Checked):
    """Which terms the student's objective has (Eq. 7), and their weights; a weight of 0 leaves the term out."""

    feature: NonNegativeFloat = 1.0
    """Weight of the feature-level distance, Eq. 5."""
    feature_distance: FeatureDistance = "l1"
    """Distance of each level: l1 (Eq. 5), kl over channels (Appendix D.1), or mse (D.3)."""
    alphas: Weights = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
    """alpha_i of Eq. 5, first to last level; a discriminator of fewer levels takes the last ones."""
    lambda_1: NonNegativeFloat = 0.2
    """Weight of the pixel distance, Eq. 2."""
    lambda_1_decay: NonNegativeFloat = 0.01
    """What lambda_1 loses with each epoch, down to 0."""
    lambda_2: NonNegativeFloat = 0.01
    """Weight of the adversarial term, Eq. 3."""
    n_critic: PositiveInt = 5
    """The adversarial term enters the generator's objective every n-th step (the discriminator steps always)."""
    kl: NonNegativeFloat = 0.0
    """Weight of the KL divergence, Eq. 6 (lambda_KL)."""
    kl_on: KLOn = "pixels"
    """What the KL compares: each pixel as a Bernoulli probability; the image as one distribution over its pixels;
    or the last discriminator activation as a distribution over channels, as the published module does."""
    kl_direction: KLDirection = "teacher_student"
    """KL(teacher || student) as in Eq. 6, or with the arguments swapped as in the published module."""
    temperature: PositiveFloat = 1.0
    """Temperature of the softmaxes of the KL terms (8 in the published module)."""
    cross_entropy: NonNegativeFloat = 0.0
    """Weight of the binary cross entropy on the discriminator's outputs (Appendix D, Fig. 12), for both nets."""
    real: NonNegativeFloat = 0.0
    """Weight of real images in the adversarial terms of both nets: 0.2 in the original TinyGAN and the baseline's
    (Sec. A.3), left out in SKDCGN (Sec. 3.1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.feature, self.lambda_1, self.kl, self.cross_entropy) == 0:
            raise InputError(
                "the student would have nothing to learn from: give feature, lambda_1, kl or cross_entropy a weight "
                "above 0."
            )

    @property
    def needs_discriminator(self) -> bool:
        """Whether any term of the student's objective looks at a discriminator."""
        on_activations = self.kl > 0 and self.kl_on == "activations"
        return on_activations or max(self.feature, self.lambda_2, self.cross_entropy, self.real) > 0

    def lambda_1_at(self, epoch: int) -> float:
        """Return lambda_1 in an epoch (from 0) of the published linear decay."""
        return max(0.0, self.lambda_1 - self.lambda_1_decay * epoch)


@dataclass(frozen=True)
class DistillConfig(Checked):
    """How a student is trained; the objective itself is `LossConfig`."""

    steps: PositiveInt = 4700
    """Optimizer steps."""
    batch_size: SeveralInt = 64
    """Teacher records a step, over all processes together."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate, for student and discriminator."""
    texture_steps: PositiveInt | None = None
    """Other number of steps for texture and background."""
    texture_learning_rate: PositiveFloat | None = None
    """Other learning rate for texture and background."""
    betas: Betas = (0.0, 0.9)
    """Adam's betas."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the student's learning rate; cosine has a short linear warm-up and ends at 0."""
    warmup: NonNegativeInt = 100
    """Steps of that warm-up."""
    ema: Decay = 0.0
    """Decay of the moving average of the student's weights that is evaluated and kept; 0 keeps the weights."""
    per_class: NonNegativeInt = 1000
    """Records of each class in the stored teacher set (the paper's 1000); 0 renders fresh ones at each step."""
    published_code: bool = False
    """Draw the teacher set as the published scripts did (see `tinygan.records.draw_records`)."""
    discriminator_width: PositiveInt = 32
    """Channels of the discriminator's first layer."""
    precision: Precision = "bf16"
    """bf16 computes in mixed precision (faster on CPUs and GPUs that have it), fp32 in full."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.published_code and not self.per_class:
            raise InputError("per_class is 0: give a number above 0, for published_code is of stored teacher sets.")

    def check_records(self, classes: int) -> None:
        """Raise InputError where a stored teacher set of so many classes has fewer records than a batch."""
        records = self.per_class * classes
        if 0 < records < self.batch_size:
            raise InputError(
                f"batch_size is {self.batch_size}: give no more than the {records} records of the teacher set, or a "
                "larger per_class, or 0 for fresh records."
            )

    def for_mechanism(self, mechanism: Mechanism) -> "DistillConfig":
        """Return the config with what is special for one mechanism put in its place."""
        if mechanism is Mechanism.SHAPE:
            return self
        steps = self.steps if self.texture_steps is None else self.texture_steps
        rate = self.learning_rate if self.texture_learning_rate is None else self.texture_learning_rate
        return replace(self, steps=steps, learning_rate=rate)
