"""Images to learn from: counterfactual data sets, and the plain GAN that they are compared with."""

from dataclasses import dataclass

from skdcgn.configs.fields import (
    Betas,
    Checked,
    Decay,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
    SeveralInt,
    Times,
)
from skdcgn.configs.names import MNIST_CLASSES, MNIST_SIDE, Intervention, Precision
from skdcgn.configs.tinygan import NATIVE_MNIST, TinyGANConfig

CHUNK = 100
"""Images drawn at a time, or as many as the counterfactuals of one mask."""
SHARD_CHUNKS = 10
"""Chunks of a shard on disk."""


@dataclass(frozen=True)
class CounterfactualConfig(Checked):
    """A counterfactual data set: everything that decides its content, beside the source.

    A smaller set is the beginning of a larger one. Sets that differ in `permute` or `intervention` alone have the
    same shapes, from the same noise.
    """

    n: PositiveInt = 10_000
    """Images."""
    per_mask: Times = 10
    """Counterfactuals of one mask, each with a texture and a background of its own."""
    permute: bool = True
    """Draw the labels of texture and background independently of the shape's; without it they are the shape's, as in
    the published script, which samples one image at a time."""
    intervention: Intervention = "none"
    """Modification of the mask, drawn anew for every image (Sec. 4.5, Table 1)."""
    strength: NonNegativeFloat | None = None
    """Its strength; by default the paper's (see `mechanisms.intervene`)."""
    shuffle: bool = True
    """Shift textures and backgrounds cyclically at random, as CGN's MNIST models do (and its ImageNet model does
    not)."""
    seed: Seed = 0
    """Of labels, noise, shifts and interventions."""

    @property
    def chunk(self) -> int:
        """Images drawn at a time, a multiple of `per_mask`: part of the definition, since it decides the draws."""
        return self.per_mask * max(1, CHUNK // self.per_mask)

    @property
    def chunks(self) -> int:
        """Chunks that hold the `n` images."""
        return -(-self.n // self.chunk)

    @property
    def per_shard(self) -> int:
        """Images of a shard on disk, of all but the last."""
        return self.chunk * SHARD_CHUNKS

    @property
    def shards(self) -> list[str]:
        """File names of the shards, in order."""
        return [f"{number:04d}.safetensors" for number in range(-(-self.n // self.per_shard))]


@dataclass(frozen=True)
class GANConfig(Checked):
    """Architecture and training of the conditional GAN: a TinyGAN generator against CGN's convolutional
    discriminator, with least-squares losses."""

    steps: PositiveInt = 3000
    """Steps in all, one of generator and discriminator each."""
    batch_size: SeveralInt = 32
    """Images in a batch."""
    lr: PositiveFloat = 5e-4
    """Adam's learning rate of the generator; it falls linearly to 0 over the second half."""
    discriminator_lr: PositiveFloat = 1e-3
    """That of the discriminator."""
    betas: Betas = (0.0, 0.99)
    """Adam's momenta."""
    ema: Decay = 0.99
    """Decay of the average of the generator's weights, which is the result."""
    generator: TinyGANConfig = NATIVE_MNIST
    """Architecture of the generator."""
    discriminator_width: PositiveInt = 32
    """Channels of the discriminator's first layer."""
    precision: Precision = "bf16"
    """Arithmetic of the networks; losses, weights and optimizers stay in fp32."""
    seed: Seed = 0
    """Of initial weights, batches and noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.generator.check_sizes(resolution=MNIST_SIDE, num_classes=MNIST_CLASSES)
