"""A plain conditional GAN for the MNIST variants: the source of training images that a CGN is compared with.

It learns the images as they are, so that the digit's label fixes color and background as it does in the training data:
its images are no counterfactuals (Sauer and Geiger, 2021, Table 1; here Sec. 1). As in `cgn.adversarial`, everything
random in step n comes from streams named after n, so that a resumed run continues exactly as the unbroken one.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from skdcgn.cgn.adversarial import random_batch
from skdcgn.cgn.losses import least_squares_terms
from skdcgn.cgn.mnist import ConvDiscriminator
from skdcgn.configs.counterfactuals import GANConfig
from skdcgn.data.mnist import TensorSet
from skdcgn.errors import InputError
from skdcgn.images import to_uint8
from skdcgn.randomness import seeded, stream
from skdcgn.runtime import autocast
from skdcgn.tinygan.networks import TinyGANGenerator
from skdcgn.training import Trainer, descend, linear_decay


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
