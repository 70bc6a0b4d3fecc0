"""A plain conditional GAN for the MNIST variants: the source of training images that a CGN is compared with.

It learns the images as they are, so that the digit's label fixes color and background as it does in the training data:
its images are no counterfactuals (Sauer and Geiger, 2021, Table 1; here Sec. 1). As in `cgn.adversarial`, everything
random in step n comes from streams named after n, so that a resumed run continues exactly as the unbroken one.
"""

import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from skdcgn.cgn.adversarial import random_batch
from skdcgn.cgn.losses import least_squares_terms
from skdcgn.cgn.mnist import ConvDiscriminator
from skdcgn.data.mnist import TensorSet
from skdcgn.errors import InputError
from skdcgn.images import to_uint8
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import Precision, autocast
from skdcgn.tinygan.networks import NATIVE_MNIST, TinyGANConfig, TinyGANGenerator
from skdcgn.training import Trainer, descend, linear_decay


@dataclasses.dataclass(frozen=True)
class GANConfig:
    """Architecture and training of the conditional GAN: a TinyGAN generator against CGN's convolutional
    discriminator, with least-squares losses."""

    steps: int = 3000
    """Steps in all, one of generator and discriminator each."""
    batch_size: int = 32
    """Images in a batch."""
    lr: float = 5e-4
    """Adam's learning rate of the generator; it falls linearly to 0 over the second half."""
    discriminator_lr: float = 1e-3
    """That of the discriminator."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Adam's momenta."""
    ema: float = 0.99
    """Decay of the average of the generator's weights, which is the result."""
    generator: TinyGANConfig = NATIVE_MNIST
    """Architecture of the generator."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    precision: Precision = "bf16"
    """Arithmetic of the networks; losses, weights and optimizers stay in fp32."""
    seed: int = 0
    """Of initial weights, batches and noise."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"a GAN cannot be trained for {self.steps} steps: give at least 1.")
        if self.batch_size < 2:
            raise InputError(f"a GAN needs a batch_size of at least 2 for batch norm, got {self.batch_size}.")
        if not 0 <= self.ema < 1:
            raise InputError(f"the GAN's ema must lie in [0, 1), got {self.ema}.")


class GANTrainer(Trainer[tuple[Tensor, Tensor]]):
    """Trains a conditional GAN; a batch is images (B, 3, H, W) in [-1, 1] and labels (B,)."""

    def __init__(self, config: GANConfig, data: TensorSet, device: torch.device | str = "cpu") -> None:
        """Start a training.

        Args:
            config: architecture and training.
            data: images to learn, 32x32.
            device: where to train.

        Raises:
            InputError: the images do not fit the generator.
        """
        size = config.generator.resolution
        if len(data) == 0 or tuple(data.pixels.shape[2:]) != (size, size):
            raise InputError(
                f"a GAN that draws {size}x{size} images cannot learn from {tuple(data.pixels.shape)} pixels (N, C, H, "
                "W)."
            )
        super().__init__(config.steps)
        self.config, self.data, self.device = config, data, torch.device(device)
        with seeded(config.seed, "gan"):
            generator = TinyGANGenerator(config.generator)
            discriminator = ConvDiscriminator(config.generator.num_classes, config.discriminator_width)
        self.generator = self.register("generator", generator.to(self.device, memory_format=torch.channels_last))
        self.discriminator = self.register(
            "discriminator", discriminator.to(self.device, memory_format=torch.channels_last)
        )
        adam, decay = functools.partial(torch.optim.Adam, betas=config.betas), linear_decay(config.steps, start=0.5)
        self._optimizer = self.register_optimizer("optimizer", adam(self.generator.parameters(), config.lr), decay)
        self._discriminator_optimizer = self.register_optimizer(
            "discriminator_optimizer", adam(self.discriminator.parameters(), config.discriminator_lr), decay
        )
        self.result = self.average("result", self.generator, config.ema)
        """The generator of averaged weights."""

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield random images of the steps that are still to do."""
        while self.step < self.steps:
            yield random_batch(self.data, self.config.batch_size, stream(self.config.seed, "gan", "batch", self.step))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Step generator and discriminator, with generated images of the batch's labels; return the terms of both."""
        real, labels = (field.to(self.device) for field in batch)
        noise_stream = stream(self.config.seed, "gan", "noise", self.step, device=self.device)
        noise = torch.randn(len(labels), self.config.generator.noise_dim, generator=noise_stream, device=self.device)
        with autocast(self.device, self.config.precision):
            generated = self.generator(noise, labels)

        self.discriminator.requires_grad_(False)
        terms = {"adversarial": (self._score(generated, labels) - 1).square().mean()}
        descend(self._optimizer, terms)
        self.discriminator.requires_grad_(True)
        critic_terms = least_squares_terms(self._score(real, labels), self._score(generated.detach(), labels))
        descend(self._discriminator_optimizer, critic_terms)
        return terms | critic_terms

    def _score(self, images: Tensor, labels: Tensor) -> Tensor:
        with autocast(self.device, self.config.precision):
            return self.discriminator(images, labels).float()


@torch.no_grad()
def sample_images(generator: TinyGANGenerator, n: int, seed: int, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Draw images of random labels from a generator in eval mode.

    Args:
        generator: of RGB images.
        n: images.
        seed: of labels and noise; a smaller draw is the beginning of a larger one.
        batch_size: images drawn at a time; part of what the seed stands for.

    Returns:
        Pixels (n, 3, H, W) uint8 and labels (n,) int64, on the CPU.
    """
    device, config = generator.fc.weight.device, generator.config
    pixels, labels = [], []
    for number in range(-(-n // batch_size)):
        draws = stream(seed, "gan", "samples", number)
        y = torch.randint(config.num_classes, (batch_size,), generator=draws)
        noise = torch.randn(batch_size, config.noise_dim, generator=draws)
        pixels.append(to_uint8(generator(noise.to(device), y.to(device))).cpu())
        labels.append(y)
    return torch.cat(pixels)[:n], torch.cat(labels)[:n]
