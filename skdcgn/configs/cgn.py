"""The CGNs of our own: training for MNIST and for ImageNet, and the fit of the miniature."""

import math
from dataclasses import dataclass, field
from typing import Literal

from skdcgn.configs.fields import (
    Betas,
    BlockWeights,
    Checked,
    Decay,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    SeveralInt,
    Share,
)
from skdcgn.configs.names import Intervention, Mechanism, Perceptual, Precision
from skdcgn.errors import InputError

GeneratorName = Literal["biggan_GT", "f_shape", "f_text", "f_bg"]


Part = Literal["biggan_GT", "f_shape", "f_text", "f_bg", "u2net"]

FITTED: tuple[Part, ...] = ("f_text", "f_bg", "biggan_GT", "f_shape", "u2net")
"""The parts in the order of fitting: the U²-Net looks at pictures of two of the others."""


@dataclass(frozen=True)
class CGNTrainingConfig(Checked):
    """How to train; the defaults are a fast recipe that needs no VGG16, `PUBLISHED` is the authors'."""

    steps: PositiveInt = 10_000
    """Steps in all, one of generator and discriminator each."""
    batch_size: SeveralInt = 16
    """Images in a batch; also the textures of each class in the bank."""
    lr: PositiveFloat = 2e-4
    """Adam's learning rate."""
    betas: Betas = (0.5, 0.999)
    """Adam's momenta."""
    decay_from: Fraction = 0.5
    """Fraction of the steps after which the learning rate falls linearly to 0; 1 keeps it."""
    discriminator: Literal["linear", "conv"] = "linear"
    """Discriminator: linear for the colored variants, conv for the textured one."""
    adversarial: NonNegativeFloat = 1.0
    """Weight of the least-squares adversarial loss."""
    binary: NonNegativeFloat = 0.3
    """Weight of the mask's binary entropy, in nats."""
    frame: NonNegativeFloat = 5.0
    """Weight of the mask on the image's frame, which settles what is mask and what is not (see
    `cgn.losses.mask_on_frame`; not in the authors' objective)."""
    color: NonNegativeFloat = 5.0
    """Weight of the distance of the images' colors (see `cgn.losses.color_distance`; not in the authors' objective)."""
    style: NonNegativeFloat = 1.0
    """Weight of the perceptual style loss, over its block weights."""
    perceptual: Perceptual = "none"
    """Features of the style loss: VGG16 (none where its weights are not at hand), an untrained small net, or none."""
    style_blocks: BlockWeights = (0.0, 0.05, 0.0, 0.05)
    """The authors' weights w of the four VGG16 blocks, as in w^2 * 5000 * L1 of Gram matrices."""
    paired_labels: bool = True
    """Generate the labels of the real batch, so that the batches can be compared; the published code draws them
    independently, which makes its style loss compare unrelated images."""
    flat_start: bool = True
    """Start texture and background as flat colors (see `cgn.mnist.initialize_orthogonally`), not as the authors do."""
    ema: Decay = 0.998
    """Decay of the average of the generator's weights that is exported; 0 exports the last weights."""
    texture_every: PositiveInt = 4
    """Texture and background are trained every n-th step; in between they come from a bank of earlier ones."""
    texture_warmup: NonNegativeInt = 500
    """Steps before that, in which they are trained every time."""
    intervention: Intervention = "none"
    """Modification of the masks before composition in training (Sec. 4.5, Table 1)."""
    intervention_strength: NonNegativeFloat | None = None
    """Its strength; by default the paper's (see `mechanisms.intervene`)."""
    precision: Precision = "bf16"
    """Arithmetic of the networks; losses, weights and optimizers stay in fp32."""
    seed: Seed = 0
    """Seed of initialization, batches and noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        style = self.style if self.perceptual != "none" else 0
        if not any((self.adversarial, self.binary, self.frame, self.color, style)):
            raise InputError(
                "a CGN would have nothing to learn from: give adversarial, binary, frame or color a weight above 0, or "
                "style and perceptual features."
            )

    def trains_texture(self, step: int) -> bool:
        """Whether texture and background are trained in a step (from 0)."""
        return step < self.texture_warmup or step % self.texture_every == 0


PUBLISHED = CGNTrainingConfig(
    steps=46_900,
    decay_from=1.0,
    binary=0.3 / math.log(2),  # theirs is in bits
    frame=0.0,
    color=0.0,
    perceptual="vgg16",
    paired_labels=False,
    flat_start=False,
    ema=0.0,
    texture_every=1,
    precision="fp32",
)
"""The authors' training on double-colored MNIST: 15 epochs of 50,000 images."""


@dataclass(frozen=True)
class CGNLossConfig(Checked):
    """Weights of CGN's objective, the authors' for ImageNet; a weight of 0 leaves the term out."""

    reconstruction: NonNegativeFloat = 100.0
    """Weight of L_rec, the pixel distance of x_gen and x_gt."""
    perceptual_blocks: BlockWeights = (4.0, 4.0, 4.0, 4.0)
    """Weights w of the four feature blocks in the style distance of x_gen and x_gt, each as w^2 * 5000."""
    binary: NonNegativeFloat = 300.0
    """Weight of the mask's entropy, in bits."""
    mask_size: NonNegativeFloat = 500.0
    """Weight of the hinge on the share of the image that is mask."""
    mask_interval: tuple[Fraction, Fraction] = (0.1, 0.9)
    """Shares that the hinge leaves alone."""
    texture_blocks: BlockWeights = (0.0, 5.0, 5.0, 0.0)
    """Block weights of the style distance of f and patches of the object."""
    patch_side: PositiveInt = 128
    """Side to which x_gt and m are brought before patches are cut."""
    patch_size: PositiveInt = 15
    """Side of a patch there."""
    patch_positions: PositiveInt = 100
    """Patches are drawn from so many positions, those with the most mask."""
    patch_grid: PositiveInt = 6
    """Patches along each side of the picture that they are laid out in."""
    background: NonNegativeFloat = 2000.0
    """Weight of the saliency of b."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.mask_interval
        if low > high:
            raise InputError(f"mask_interval is {self.mask_interval}: give the smaller share first.")
        positions = max(0, self.patch_side - self.patch_size + 1) ** 2
        if self.patch_positions > positions:
            raise InputError(
                f"patch_positions is {self.patch_positions}: give at most {positions}, the places of a patch "
                f"(patch_size {self.patch_size}) in a picture (patch_side {self.patch_side}), or change these."
            )
        if not any((self.reconstruction, self.binary, self.mask_size, self.background)):
            raise InputError(
                "a CGN would have nothing to learn from: give reconstruction, binary, mask_size or background a weight "
                "above 0."
            )


@dataclass(frozen=True)
class ReconstructionConfig(Checked):
    """How to train; the defaults are CGN's own for ImageNet, which the paper's baseline keeps."""

    steps: PositiveInt = 1_200_000
    """Batches in all."""
    batch_size: PositiveInt = 1
    """Images in a batch."""
    accumulate: PositiveInt = 4000
    """Batches whose gradients make one update."""
    shape_lr: PositiveFloat = 8e-6
    """Adam's learning rate of the shape generator."""
    texture_lr: PositiveFloat = 3e-5
    """Adam's learning rate of the texture generator."""
    background_lr: PositiveFloat = 1e-5
    """Adam's learning rate of the background generator."""
    truncation: Share = 1.0
    """Of the noise, in (0, 1]."""
    loss: CGNLossConfig = field(default_factory=CGNLossConfig)
    perceptual: Perceptual = "vgg16"
    """Features of the style losses: VGG16 (none where its weights are not at hand), an untrained small net, or none."""
    batch_statistics: bool = False
    """Normalize TinyGANs by the statistics of each batch, as the published baseline did with batches of one image;
    without it they keep those of their distillation, as BigGAN always keeps its own."""
    precision: Precision = "bf16"
    """Arithmetic of the networks; losses, weights and optimizers stay in fp32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps % self.accumulate:
            raise InputError(
                f"steps is {self.steps}: give a multiple of accumulate, {self.accumulate}, so that no batch is lost."
            )

    @property
    def learning_rates(self) -> dict[Mechanism, float]:
        """The learning rate of each mechanism's generator."""
        return dict(zip(Mechanism, (self.shape_lr, self.texture_lr, self.background_lr), strict=True))


@dataclass(frozen=True)
class FitConfig(Checked):
    """How the miniature is fitted."""

    texture_steps: PositiveInt = 4500
    """Steps of the texture and of the background generator."""
    composed_steps: PositiveInt = 5500
    """Steps of the generator of composed images."""
    shape_steps: PositiveInt = 6500
    """Steps of the shape generator."""
    saliency_steps: PositiveInt = 1500
    """Steps of the U²-Net."""
    batch_size: PositiveInt = 32
    """Images a step; a multiple of 8."""
    texture_learning_rate: PositiveFloat = 8e-3
    """Adam's learning rate for the texture and the background generator; all fall to 0 along a cosine."""
    learning_rate: PositiveFloat = 6e-3
    """That for the wider generators and the U²-Net."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % 8:
            raise InputError(f"batch_size is {self.batch_size}: give a multiple of 8.")

    def steps(self, part: Part) -> int:
        """Return the steps of one part."""
        return {
            "f_text": self.texture_steps,
            "f_bg": self.texture_steps,
            "biggan_GT": self.composed_steps,
            "f_shape": self.shape_steps,
            "u2net": self.saliency_steps,
        }[part]
